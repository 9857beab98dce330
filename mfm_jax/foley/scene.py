"""Scenes of the Foley world: bodies, their motions and their contacts.

`stage` draws a scene from a seed; `world` renders its picture and sound.

Lengths are in units of 1/64 of the picture's side, so `World.size` only sets the resolution.
"""

from dataclasses import dataclass

import numpy as np

from mfm_jax.errors import UserError
from mfm_jax.typing import Float

# The seed decides the split. Seeds from 10 000 000 on are never trained on: tune on "validation"
# and report "test".
SPLITS = {
    "train": range(0, 10_000_000),
    "validation": range(10_000_000, 20_000_000),
    "test": range(20_000_000, 30_000_000),
}

KINDS = ("bounce", "strike", "roll")
FASTEST = {"bounce": 125.0, "strike": 240.0, "roll": 60.0}  # units/s, the speed of strength 1


class WorldError(UserError):
    """A folder or a setting that cannot be used; the message says what to do."""


@dataclass(frozen=True)
class World:
    """The settings of one grade of the world; the defaults are those of the base grade.

    Pairs are ranges that each clip draws from uniformly. Features of the hard grade have random
    streams of their own, so turning `hues` or `screened` off changes nothing else in a clip.

    Raises:
        WorldError: no clip can be made with these settings.
    """

    seconds: float = 2.56  # s; 16 tokens of 160 ms, a quarter of AudioLDM2's 10.24 s
    fps: float = 25.0  # frames/s; encoders sample 12.5 of them
    size: int = 64  # pixels, height and width
    rate: int = 16_000  # Hz, AudioLDM2's
    kinds: tuple[float, float, float] = (0.45, 0.40, 0.15)  # probabilities, in the order of KINDS
    radius: tuple[float, float] = (5.0, 9.0)  # units
    gravity: tuple[float, float] = (90.0, 160.0)  # units/s^2; slow enough to see at 12.5 fps
    restitution: tuple[float, float] = (0.6, 0.85)  # speed after a bounce / speed before
    bounce_gap: float = 0.16  # s; the ball rests instead of making a shorter bounce
    blows: tuple[int, int] = (1, 5)  # blows of the mallet in 2.56 s
    blow_gap: float = 0.3  # s; shortest time between two blows
    wall_hit: float = 0.8  # share of pushes that reach the wall; .15 x .2 of clips have no event
    distractor: float = 0.5  # share of clips with a silent drifting disc
    noise: int = 2  # largest pixel noise in 8-bit steps; more would not survive H.264
    margin: float = 0.06  # s; no contact is closer to an end, so that each is seen and heard
    longest: float | None = None  # s; if given, lengths are drawn from `seconds` to this
    bodies: int = 1  # with sound; two bodies have a side each, and different materials
    screened: float = 0.0  # share of clips where a screen hides the contacts of one body
    hues: float = 0.0  # degrees; hues turn by up to this in training, by up to twice when held out

    def __post_init__(self) -> None:
        if self.seconds < 1.5:
            raise WorldError(
                f"a clip of {self.seconds} s is too short to act in: use 1.5 s or more"
            )
        if self.longest is not None and self.longest < self.seconds:
            raise WorldError(
                f"clips from {self.seconds} s to {self.longest} s: give the shorter length first"
            )
        if self.bodies not in (1, 2):
            raise WorldError(f"{self.bodies} bodies do not fit on the floor: use 1 or 2")
        if not 0 <= self.hues <= 10:
            raise WorldError(
                f"hues turned by {self.hues} to {2 * self.hues} degrees are mistaken for others: "
                "use 0 to 10"
            )

    @classmethod
    def hard(cls) -> "World":
        """Return the hard grade: two bodies, 5 to 10 s, screens in half of the clips, new hues."""
        return cls(seconds=5.0, longest=10.0, bodies=2, radius=(5.0, 6.5), screened=0.5, hues=10.0)


@dataclass(frozen=True)
class Material:
    """The look and sound of a body."""

    name: str
    colour: tuple[float, float, float]  # red, green, blue, 0-255
    checker: bool  # texture: squares of 2.5 units that turn with the body, or plain
    pitch: float  # Hz, lowest partial of a body of radius 7
    partials: tuple[float, ...]  # frequency ratios
    decay: float  # s until the lowest partial has fallen to 1/e; higher ones fall faster
    burst: float  # s until the noise of the contact has fallen to 1/e
    edge: float  # Hz above which the noise of a soft contact fades; 4x higher for a hard one
    tone: float  # share of the partials in the sound, the rest is the burst


_ORANGE, _BLUE, _RED, _GREEN = (
    (235.0, 145.0, 30.0),
    (50.0, 110.0, 240.0),
    (225.0, 40.0, 70.0),
    (50.0, 190.0, 70.0),
)

MATERIALS = (
    Material("wood", _ORANGE, False, 420.0, (1.0, 2.57, 4.95), 0.05, 0.006, 900.0, 0.75),
    Material("drum", _ORANGE, True, 95.0, (1.0, 1.59, 2.14, 2.65, 2.92), 0.18, 0.03, 350.0, 0.8),
    Material("metal", _BLUE, False, 880.0, (1.0, 2.0, 3.01, 4.7, 6.3), 0.4, 0.003, 2500.0, 0.8),
    Material("glass", _BLUE, True, 2100.0, (1.0, 1.52, 2.35), 0.16, 0.004, 3000.0, 0.8),
    Material("rubber", _RED, False, 150.0, (1.0,), 0.035, 0.02, 200.0, 0.7),
    Material("plastic", _RED, True, 750.0, (1.0, 1.83, 3.1), 0.022, 0.008, 1500.0, 0.5),
    Material("stone", _GREEN, False, 1500.0, (1.0, 1.41, 2.2, 2.83), 0.012, 0.015, 2200.0, 0.4),
    Material("gravel", _GREEN, True, 600.0, (1.0, 1.7), 0.012, 0.09, 1800.0, 0.1),
)


@dataclass(frozen=True)
class Event:
    """One contact."""

    time: float  # s from the start of the clip
    kind: str  # motion of the body, one of KINDS; a roll has its contact with the wall
    material: str  # name in MATERIALS
    strength: float  # 0 to 1; speed of the contact over the fastest of its kind
    hidden: bool = False  # behind the screen: heard but not seen


@dataclass(frozen=True)
class Motion:
    """One coordinate over time, in pieces of constant acceleration; the last one never ends."""

    pieces: tuple[
        tuple[float, float, float, float], ...
    ]  # start s, position, velocity, acceleration

    def at(
        self, t: Float[np.ndarray, " T"]
    ) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Return position and velocity at the times `t` in seconds."""
        table = np.array(self.pieces)
        starts, position, velocity, acceleration = table[
            np.searchsorted(table[1:, 0], t, side="right")
        ].T
        dt = np.maximum(t - starts, 0.0)
        return (position + (velocity + acceleration * dt / 2) * dt, velocity + acceleration * dt)


@dataclass(frozen=True)
class Body:
    """A body with its motions and contacts in the clip."""

    kind: str
    material: Material
    colour: tuple[float, float, float]  # red, green, blue, 0-255; near the material's hue
    radius: float  # units
    x: Motion  # units, of the centre from the left
    height: Motion  # units, of the lowest point above the floor
    turn: Motion  # rad
    mallet: Motion | None  # units, from the mallet's head to the body; None: there is no mallet
    contacts: tuple[tuple[float, float], ...]  # time s, strength


@dataclass(frozen=True)
class Disc:
    """A silent disc that drifts along centre + reach * sin(2 pi rate t + phase) in x and y."""

    grey: float
    radius: float
    centre: tuple[float, float]
    reach: tuple[float, float]
    rate: tuple[float, float]  # Hz
    phase: tuple[float, float]

    def at(
        self, t: Float[np.ndarray, " T"]
    ) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Return x and y of the centre at the times `t` in seconds."""
        paths = zip(self.centre, self.reach, self.rate, self.phase, strict=True)
        x, y = (c + reach * np.sin(2 * np.pi * rate * t + phase) for c, reach, rate, phase in paths)
        return x, y


@dataclass(frozen=True)
class Screen:
    """An opaque, silent box that hides the contacts of a body."""

    hides: int  # index of the body
    grey: float
    across: tuple[float, float]  # units from the left
    down: tuple[float, float]  # units from the top


@dataclass(frozen=True)
class Backdrop:
    """A moving sinusoid above a plain floor."""

    floor: float  # units from the top
    walls: tuple[float, ...]  # units from the left, faces of walls; each fills the nearer side
    grey: float  # mean brightness, 0-255
    tint: tuple[float, float, float]
    swing: float  # amplitude of the sinusoid
    waves: tuple[float, float]  # rad per unit in x and y
    speed: float  # rad/s
    gain: float  # brightness of the whole clip


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn at random for a clip, except the noise in picture and sound."""

    seed: int
    seconds: float
    bodies: tuple[Body, ...]
    backdrop: Backdrop
    disc: Disc | None
    screen: Screen | None

    @property
    def events(self) -> tuple[Event, ...]:
        """All contacts in order of time."""
        behind = None if self.screen is None else self.screen.hides
        events = [
            Event(time, body.kind, body.material.name, strength, hidden=i == behind)
            for i, body in enumerate(self.bodies)
            for time, strength in body.contacts
        ]
        return tuple(sorted(events, key=lambda event: event.time))


def split_of(seed: int) -> str:
    """Return the name of the split that `seed` belongs to."""
    for name, seeds in SPLITS.items():
        if seed in seeds:
            return name
    raise WorldError(f"seed {seed} belongs to no split: use 0 to {SPLITS['test'].stop - 1}")


def stream(seed: int, use: int) -> np.random.Generator:
    """Return a random stream for one use of a seed, independent of the draws of other uses."""
    return np.random.default_rng((seed, use))
