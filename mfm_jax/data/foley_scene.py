"""What happens in a clip of the Foley world: bodies, their motions and their contacts.

`stage` draws a scene from a seed. How a scene looks and sounds is `foley_world`'s business.

Lengths are in units of 1/64 of the picture's side, so that `World.size` only sets the resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mfm_jax.typing import Float

# The seed decides the split. Everything from 10 000 000 up is held out of all training: tune on
# "validation", report "test".
SPLITS = {
    "train": range(0, 10_000_000),
    "validation": range(10_000_000, 20_000_000),
    "test": range(20_000_000, 30_000_000),
}

KINDS = ("bounce", "strike", "roll")
FASTEST = {"bounce": 125.0, "strike": 240.0, "roll": 60.0}  # units/s, the speed of strength 1


class WorldError(ValueError):
    """The folder or the numbers given cannot be used; the message says what to do."""


@dataclass(frozen=True)
class World:
    """The numbers of the base grade. Pairs are ranges that a clip draws from uniformly."""

    seconds: float = 2.56  # s; 16 tokens of 160 ms, a quarter of AudioLDM2's 10.24 s
    fps: float = 25.0  # frames/s; encoders sample 12.5 of them
    size: int = 64  # pixels, height and width
    rate: int = 16_000  # Hz, AudioLDM2's
    kinds: tuple[float, float, float] = (0.45, 0.40, 0.15)  # probabilities, in the order of KINDS
    radius: tuple[float, float] = (5.0, 9.0)  # units
    gravity: tuple[float, float] = (90.0, 160.0)  # units/s^2; slow enough to follow at 12.5 fps
    restitution: tuple[float, float] = (0.6, 0.85)  # speed after a bounce / speed before
    bounce_gap: float = 0.16  # s; a bounce shorter than this is not made, the ball rests
    blows: tuple[int, int] = (1, 5)  # blows of the mallet in 2.56 s
    blow_gap: float = 0.3  # s, least time between two blows
    wall_hit: float = 0.8  # share of pushes that reach the wall; .15 x .2 of clips have no event
    distractor: float = 0.5  # share of clips with a silent drifting disc
    noise: int = 2  # largest pixel noise in 8-bit steps; more is lost in H.264
    margin: float = 0.06  # s; no contact this near to either end, so that each is seen and heard

    def __post_init__(self) -> None:
        if self.seconds < 1.5:
            raise WorldError(
                f"a clip of {self.seconds} s is too short to act in: use 1.5 s or more"
            )

    @property
    def frames(self) -> int:
        """Pictures in a clip."""
        return round(self.seconds * self.fps)

    @property
    def samples(self) -> int:
        """Audio samples in a clip."""
        return round(self.seconds * self.rate)


@dataclass(frozen=True)
class Material:
    """How a body looks and sounds."""

    name: str
    colour: tuple[float, float, float]  # red, green, blue, 0-255
    checker: bool  # texture: squares of 2.5 units that turn with the body, or plain
    pitch: float  # Hz, lowest partial of a body of radius 7
    partials: tuple[float, ...]  # frequency ratios
    decay: float  # s, in which the lowest partial falls to 1/e; the higher ones fall faster
    burst: float  # s, in which the noise of the contact falls to 1/e
    edge: float  # Hz, above which the noise of a soft contact fades; a hard one reaches 4x higher
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
    """One contact that is seen and heard."""

    time: float  # s from the start of the clip
    kind: str  # what the body was doing, of KINDS; the contact of a roll is with the wall
    material: str  # name in MATERIALS
    strength: float  # 0 to 1, speed of the contact / the fastest of its kind


@dataclass(frozen=True)
class Motion:
    """One coordinate in time: pieces of constant acceleration, the last one going on for ever."""

    pieces: tuple[
        tuple[float, float, float, float], ...
    ]  # start s, position, velocity, acceleration

    def at(
        self, t: Float[np.ndarray, " T"]
    ) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Position and velocity at the times `t` in seconds."""
        table = np.array(self.pieces)
        starts, position, velocity, acceleration = table[
            np.searchsorted(table[1:, 0], t, side="right")
        ].T
        dt = np.maximum(t - starts, 0.0)
        return (position + (velocity + acceleration * dt / 2) * dt, velocity + acceleration * dt)


@dataclass(frozen=True)
class Body:
    """A thing on the floor or above it, with all it does in the clip."""

    kind: str
    material: Material
    radius: float  # units
    x: Motion  # units, of the centre from the left
    height: Motion  # units, of the lowest point above the floor
    turn: Motion  # rad
    mallet: Motion | None  # units, from the head of the mallet to the body, where there is one
    contacts: tuple[tuple[float, float], ...]  # time s, strength


@dataclass(frozen=True)
class Disc:
    """A silent disc that drifts: centre + reach * sin(2 pi rate t + phase) in x and in y."""

    grey: float
    radius: float
    centre: tuple[float, float]
    reach: tuple[float, float]
    rate: tuple[float, float]  # Hz
    phase: tuple[float, float]

    def at(
        self, t: Float[np.ndarray, " T"]
    ) -> tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Where its centre is at the times `t` in seconds."""
        paths = zip(self.centre, self.reach, self.rate, self.phase, strict=True)
        x, y = (c + reach * np.sin(2 * np.pi * rate * t + phase) for c, reach, rate, phase in paths)
        return x, y


@dataclass(frozen=True)
class Backdrop:
    """A moving sinusoid above a plain floor."""

    floor: float  # units from the top
    wall: float | None  # units from the left, face of the wall; it fills the nearer side
    grey: float  # mean brightness, 0-255
    tint: tuple[float, float, float]
    swing: float  # amplitude of the sinusoid
    waves: tuple[float, float]  # rad per unit in x and y
    speed: float  # rad/s
    gain: float  # brightness of the whole clip


@dataclass(frozen=True)
class Scene:
    """All that is drawn at random about a clip, but the noise in the picture and in the sound."""

    seed: int
    bodies: tuple[Body, ...]
    backdrop: Backdrop
    disc: Disc | None

    @property
    def events(self) -> tuple[Event, ...]:
        """Every contact, in the order of time."""
        events = [
            Event(time, body.kind, body.material.name, strength)
            for body in self.bodies
            for time, strength in body.contacts
        ]
        return tuple(sorted(events, key=lambda event: event.time))


def split_of(seed: int) -> str:
    """Name of the split that `seed` belongs to."""
    for name, seeds in SPLITS.items():
        if seed in seeds:
            return name
    raise WorldError(f"seed {seed} belongs to no split: use 0 to {SPLITS['test'].stop - 1}")


def stream(seed: int, use: int) -> np.random.Generator:
    """An own random stream for each use, so that none depends on how much another one drew."""
    return np.random.default_rng((seed, use))


# The scene ----------------------------------------------------------------------------------------

_STILL = Motion(((0.0, 0.0, 0.0, 0.0),))


def stage(world: World, seed: int) -> Scene:
    """Draw the scene of `seed`."""
    rng = stream(seed, 0)
    kind = KINDS[rng.choice(len(KINDS), p=world.kinds)]
    material = MATERIALS[rng.integers(len(MATERIALS))]
    radius, floor = rng.uniform(*world.radius), rng.uniform(50, 57)
    wall = None
    if kind == "bounce":
        body = _bounce(world, rng, material, radius, floor)
    elif kind == "strike":
        body = _strike(world, rng, material, radius)
    else:
        wall = float(rng.choice([rng.uniform(4, 8), rng.uniform(56, 60)]))
        body = _roll(world, rng, material, radius, wall)
    backdrop = Backdrop(
        floor=floor,
        wall=wall,
        grey=rng.uniform(110, 165),
        tint=tuple(rng.uniform(-10, 10, 3).tolist()),
        swing=rng.uniform(8, 22),
        waves=tuple((rng.choice([-1, 1], 2) * rng.uniform(0.1, 0.5, 2)).tolist()),
        speed=rng.uniform(2, 8),
        gain=rng.uniform(0.85, 1.15),
    )
    return Scene(seed, (body,), backdrop, _disc(rng) if rng.random() < world.distractor else None)


def _disc(rng: np.random.Generator) -> Disc:
    def two(low: float, high: float) -> tuple[float, float]:
        x, y = rng.uniform(low, high, 2)
        return float(x), float(y)

    return Disc(
        grey=float(rng.choice([rng.uniform(20, 60), rng.uniform(200, 240)])),
        radius=rng.uniform(3, 6),
        centre=two(18.0, 34.0),
        reach=two(8.0, 18.0),
        rate=two(0.1, 0.4),
        phase=two(0.0, 2 * np.pi),
    )


def _inside(world: World, contacts: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The contacts within the clip."""
    return [(t, strength) for t, strength in contacts if 0 <= t < world.seconds]


def _clear(world: World, contacts: Sequence[tuple[float, float]]) -> bool:
    """Whether no contact is too near to either end of the clip to be seen and heard."""
    ends = (0.0, world.seconds)
    return all(abs(t - end) >= world.margin for t, _ in contacts for end in ends)


def _ease(t: float, start: float, stop: float, seconds: float) -> list[tuple]:
    """Two pieces that go from `start` to `stop`, at rest at both."""
    a = 4 * (stop - start) / seconds**2
    half = seconds / 2
    return [(t, start, 0.0, a), (t + half, (start + stop) / 2, a * half, -a)]


def _bounce(
    world: World, rng: np.random.Generator, material: Material, radius: float, floor: float
) -> Body:
    """A ball that falls and bounces until it rests; after a while it is lifted and falls again."""
    g, e = rng.uniform(*world.gravity), rng.uniform(*world.restitution)
    highest = floor - 2 * radius - 1
    contacts: list[tuple[float, float]] = []
    while not (_inside(world, contacts) and _clear(world, contacts)):
        h = rng.uniform(18, highest)
        t = float(rng.uniform(-0.7 * np.sqrt(2 * h / g), 0.4))
        side, reach = rng.uniform(radius + 2, 62 - radius), (radius + 2, 62 - radius)
        height, x, contacts = [(t - 10, h, 0.0, 0.0)], [(t - 10, side, 0.0, 0.0)], []
        while t < world.seconds:
            gaps = _gaps(h, g, e, world.bounce_gap)
            drift = float(np.clip((rng.uniform(*reach) - side) / sum(gaps), -20, 20))
            height.append((t, h, 0.0, -g))
            x.append((t, side, drift, 0.0))
            side += drift * sum(gaps)
            for i, gap in enumerate(gaps):
                t += gap
                speed = float(np.sqrt(2 * g * h)) * e**i
                contacts.append((t, speed / FASTEST["bounce"]))
                height.append((t, 0.0, speed * e, -g))
            height[-1] = (t, 0.0, 0.0, 0.0)
            x.append((t, side, 0.0, 0.0))
            t += rng.uniform(0.3, 0.8)
            h = rng.uniform(18, highest)
            height += _ease(t, 0.0, h, 0.5)
            t += 0.5
    turn = Motion(((0.0, rng.uniform(0, 7), rng.uniform(-5, 5), 0.0),))
    return Body(
        kind="bounce",
        material=material,
        radius=radius,
        x=Motion(tuple(x)),
        height=Motion(tuple(height)),
        turn=turn,
        mallet=None,
        contacts=tuple(_inside(world, contacts)),
    )


def _gaps(h: float, g: float, e: float, shortest: float) -> list[float]:
    """Seconds of the fall from `h`, then of each bounce that is not shorter than `shortest`."""
    fall = float(np.sqrt(2 * h / g))
    gaps = [fall]
    while (gap := 2 * fall * e ** len(gaps)) >= shortest:
        gaps.append(gap)
    return gaps


_DWELL = 0.04  # s that the mallet stays on the body, so that a frame at 25 fps shows it there


def _strike(world: World, rng: np.random.Generator, material: Material, radius: float) -> Body:
    """A body on the floor that a mallet strikes."""
    times = _blow_times(world, rng)
    count = len(times)
    strengths = rng.uniform(0.25, 1, count)
    # A harder blow comes from higher up and takes less time.
    drops = 2.5 + 13.5 * strengths
    falls = 2 * drops / (FASTEST["strike"] * strengths)
    gap: list[tuple] = [(-1.0, drops[0], 0.0, 0.0)]
    for i, t in enumerate(times):
        gap += [(t - falls[i], drops[i], 0.0, -2 * drops[i] / falls[i] ** 2), (t, 0.0, 0.0, 0.0)]
        following = drops[i + 1] if i + 1 < count else 8.0
        free = times[i + 1] - falls[i + 1] - t - _DWELL if i + 1 < count else 1.0
        rise = min(0.25, free)
        gap += [*_ease(t + _DWELL, 0.0, following, rise), (t + _DWELL + rise, following, 0.0, 0.0)]
    return Body(
        kind="strike",
        material=material,
        radius=radius,
        x=Motion(((0.0, rng.uniform(radius + 4, 60 - radius), 0.0, 0.0),)),
        height=_STILL,
        turn=Motion(((0.0, rng.uniform(0, 7), 0.0, 0.0),)),
        mallet=Motion(tuple(gap)),
        contacts=tuple(zip(times.tolist(), strengths.tolist(), strict=True)),
    )


def _blow_times(world: World, rng: np.random.Generator) -> Float[np.ndarray, " blows"]:
    """When the mallet strikes; every 2.56 s of a long clip get their own draw."""
    first = 0.22  # s; the mallet is seen to fall
    stretch = world.seconds - world.margin + world.blow_gap - first
    sections = max(1, round(world.seconds / 2.56))
    times: list[float] = []
    for i in range(sections):
        most = int(stretch / sections / world.blow_gap)
        count = min(int(rng.integers(world.blows[0], world.blows[1] + 1)), most)
        spare = stretch / sections - count * world.blow_gap
        start = first + i * stretch / sections
        times.extend(
            start + np.sort(rng.uniform(0, spare, count)) + world.blow_gap * np.arange(count)
        )
    return np.array(times)


def _roll(
    world: World, rng: np.random.Generator, material: Material, radius: float, wall: float
) -> Body:
    """A ball that is pushed along the floor, mostly against the wall; when it rests, again."""
    room = (64 - wall if wall < 32 else wall) - 2 * radius - 1
    contacts: list[tuple[float, float]] = []
    hit = rng.random() < world.wall_hit
    fits = False
    while not fits:
        t, d = rng.uniform(-0.2, 0.4), rng.uniform(0.6, 0.95) * room
        pieces: list[tuple] = [(t - 10, d, 0.0, 0.0)]
        contacts, against = [], hit
        while t < world.seconds:
            if d < 0.35 * room:
                t, d = _push(rng, pieces, t, d, rng.uniform(0.6, 0.95) * room)
            elif against:
                t, d, contact = _push_against_wall(rng, pieces, t, d, room)
                contacts.append(contact)
            else:
                t, d = _push(rng, pieces, t, d, rng.uniform(0.1, 0.3) * d)
            t += rng.uniform(0.3, 0.8)
            against = rng.random() < world.wall_hit
        fits = _clear(world, contacts) and (not hit or bool(_inside(world, contacts)))
    # `d` is the way left to the wall.
    sign = 1 if wall < 32 else -1
    x = Motion(tuple((t, wall + sign * (radius + d), sign * v, sign * a) for t, d, v, a in pieces))
    turn = Motion(tuple((t, p / radius, v / radius, a / radius) for t, p, v, a in x.pieces))
    return Body(
        kind="roll",
        material=material,
        radius=radius,
        x=x,
        height=_STILL,
        turn=turn,
        mallet=None,
        contacts=tuple(_inside(world, contacts)),
    )


_PUSH = 0.2  # s in which a ball at rest reaches its speed


def _push(
    rng: np.random.Generator, pieces: list[tuple], t: float, start: float, stop: float
) -> tuple[float, float]:
    """Roll from rest at `start` to rest at `stop`; returns the time and place of the end."""
    way = stop - start
    v = float(np.sign(way) * min(rng.uniform(25, 60), abs(way) / _PUSH))
    pieces.append((t, start, 0.0, v / _PUSH))
    left = way - v * _PUSH / 2
    a = -(v**2) / (2 * left)
    pieces += [
        (t + _PUSH, stop - left, v, a),
        (t + _PUSH - v / a, stop, 0.0, 0.0),
    ]
    return t + _PUSH - v / a, stop


def _push_against_wall(
    rng: np.random.Generator, pieces: list[tuple], t: float, d: float, room: float
) -> tuple[float, float, tuple[float, float]]:
    """Roll from rest at distance `d` against the wall and back; also returns the contact."""
    v = min(rng.uniform(25, 60), d / _PUSH)
    arrival = v * rng.uniform(0.6, 0.95)
    left = d - v * _PUSH / 2
    a = (v**2 - arrival**2) / (2 * left)
    hit = t + _PUSH + (v - arrival) / a
    back = arrival * rng.uniform(0.4, 0.6)
    a_back = max(a, back**2 / (2 * 0.9 * room))
    stop, end = back**2 / (2 * a_back), hit + back / a_back
    pieces += [
        (t, d, 0.0, -v / _PUSH),
        (t + _PUSH, left, -v, a),
        (hit, 0.0, back, -a_back),
        (end, stop, 0.0, 0.0),
    ]
    return end, stop, (hit, arrival / FASTEST["roll"])
