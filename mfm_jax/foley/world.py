"""The Foley world: procedural clips of bodies that bounce, are struck and roll, with sound.

A clip is a pure function of a `World` and a seed. `stage` draws the scene: bodies, their motions
and the exact times of contact. `render` makes the frames of a scene and `synthesise` its sound, by
modal synthesis: the spectrum follows the material and size of a body, the onsets are its visible
contacts, and the level follows the speed of each contact.

The hue of a body stands for a pair of materials and its texture for one of the two, so the material
cannot be seen at low resolution. This is a deliberate choice.

Networks are trained on the base grade, `World()`. The hard grade, `World.hard()`, shows their
limits: longer clips, two bodies, hidden contacts, and hues that are not in training.
"""

import csv
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mfm_jax.foley.scene import (
    FASTEST,
    KINDS,
    MATERIALS,
    SPLITS,
    Backdrop,
    Body,
    Event,
    Scene,
    Screen,
    World,
    WorldError,
    split_of,
    stream,
)
from mfm_jax.foley.stage import stage
from mfm_jax.media.write import write_frames
from mfm_jax.runtime.workers import map_in_processes
from mfm_jax.storage.files import atomic_write
from mfm_jax.typing import Float, UInt8

__all__ = [
    "KINDS",
    "MATERIALS",
    "SPLITS",
    "Event",
    "RenderedClip",
    "Scene",
    "World",
    "WorldError",
    "generate_clip",
    "read_events",
    "render",
    "split_of",
    "stage",
    "synthesise",
    "write_clip",
    "write_world",
]


@dataclass(frozen=True)
class RenderedClip:
    """A scene with its frames and its sound."""

    scene: Scene
    frames: UInt8[np.ndarray, "T H W 3"]
    audio: Float[np.ndarray, " A"]  # within -1..1

    @property
    def events(self) -> tuple[Event, ...]:
        """All contacts in order of time."""
        return self.scene.events


def generate_clip(world: World, seed: int) -> RenderedClip:
    """Make the frames, sound and events of `seed`, the same at every call."""
    scene = stage(world, seed)
    return RenderedClip(scene, render(world, scene), synthesise(world, scene))


# The picture --------------------------------------------------------------------------------------


def render(world: World, scene: Scene) -> UInt8[np.ndarray, "T H W 3"]:
    """Render the frames of `scene`; frame k shows the time k / fps."""
    t = np.arange(round(scene.seconds * world.fps)) / world.fps
    rng, backdrop = stream(scene.seed, 1), scene.backdrop
    place = ((np.arange(world.size) + 0.5) * (64 / world.size)).astype(np.float32)
    picture = _paint_backdrop(backdrop, t, place)
    canvas = partial(_paint_disc, picture, place)
    if scene.disc is not None:
        canvas(*scene.disc.at(t), scene.disc.radius, (scene.disc.grey,) * 3)
    for body in scene.bodies:
        x, y = body.x.at(t)[0], backdrop.floor - body.radius - body.height.at(t)[0]
        turn = body.turn.at(t)[0] if body.material.checker else None
        canvas(x, y, body.radius, body.colour, turn)
        if body.mallet is not None:
            _paint_mallet(picture, place, x, y - body.radius - body.mallet.at(t)[0])
    if scene.screen is not None:
        _paint_screen(picture, place, scene.screen)
    # The same noise for all three colours: colour noise would be lost in 4:2:0.
    flicker = backdrop.gain * (1 + 0.01 * rng.standard_normal(len(t)))
    picture *= flicker.astype(np.float32)[:, None, None, None]
    steps = rng.integers(-world.noise, world.noise + 1, picture.shape[:3], dtype=np.int8)
    picture += steps[..., None]
    return np.clip(np.rint(picture, out=picture), 0, 255, out=picture).astype(np.uint8)


def _paint_backdrop(
    backdrop: Backdrop, t: Float[np.ndarray, " T"], place: Float[np.ndarray, " W"]
) -> Float[np.ndarray, "T W W 3"]:
    phase = (
        backdrop.speed * t.astype(np.float32)[:, None, None]
        + backdrop.waves[1] * place[:, None]
        + backdrop.waves[0] * place
    )
    shade = backdrop.grey + backdrop.swing * np.sin(phase, dtype=np.float32)
    for wall in backdrop.walls:
        outside = place - wall if wall > 32 else wall - place
        standing = np.clip((place - 22) + 0.5, 0, 1)[:, None] * np.clip(outside + 0.5, 0, 1)
        shade += standing * (200 - shade)
    floor = np.clip(place - backdrop.floor + 0.5, 0, 1)[:, None]
    shade += floor * (0.5 * backdrop.grey - shade)
    return shade[..., None] + np.asarray(backdrop.tint, np.float32)


def _span(place: np.ndarray, low: float, high: float) -> slice:
    """Return the pixels between `low` and `high`, including those that touch them."""
    unit = place[1] - place[0]
    return slice(*np.searchsorted(place, [low - unit, high + unit]).tolist())


def _paint_disc(
    picture: Float[np.ndarray, "T W W 3"],
    place: Float[np.ndarray, " W"],
    x: Float[np.ndarray, " T"],
    y: Float[np.ndarray, " T"],
    radius: float,
    colour: tuple[float, float, float],
    turn: Float[np.ndarray, " T"] | None = None,
) -> None:
    """Paint a disc with a soft edge; with `turn` (rad) it has a checker texture that rotates."""
    # Only the box that the disc ever touches is painted, which is twice as fast.
    rows = _span(place, y.min() - radius, y.max() + radius)
    columns = _span(place, x.min() - radius, x.max() + radius)
    dx = place[columns] - x.astype(np.float32)[:, None, None]
    dy = place[rows, None] - y.astype(np.float32)[:, None, None]
    pixels = 1 / (place[1] - place[0])
    alpha = np.clip((radius - np.sqrt(dx * dx + dy * dy)) * pixels + 0.5, 0, 1)[..., None]
    paint = np.asarray(colour, np.float32)
    if turn is not None:
        cos, sin = (f(turn).astype(np.float32)[:, None, None] for f in (np.cos, np.sin))
        wave = np.float32(np.pi / 2.5)
        squares = np.sin(wave * (cos * dx + sin * dy)) * np.sin(wave * (cos * dy - sin * dx))
        paint = paint * (0.7 + 0.35 * np.clip(4 * squares, -1, 1))[..., None]
    box = picture[:, rows, columns]
    box += alpha * (paint - box)


def _paint_mallet(
    picture: Float[np.ndarray, "T W W 3"],
    place: Float[np.ndarray, " W"],
    x: Float[np.ndarray, " T"],
    tip: Float[np.ndarray, " T"],
) -> None:
    """Paint a mallet whose head ends at height `tip`: a head of 9 x 5 units and a handle."""
    dx, dy = (a.astype(np.float32)[:, None] for a in (x, tip))
    for half, low, high, grey in ((0.9, 5.0, 25.0, 215.0), (4.5, 0.0, 5.0, 35.0)):
        across = np.clip(half - np.abs(place - dx) + 0.5, 0, 1)
        above = dy - place
        along = np.clip(above - low + 0.5, 0, 1) * np.clip(high - above + 0.5, 0, 1)
        columns = _span(place, x.min() - half, x.max() + half)
        box = picture[:, :, columns]
        box += (along[:, :, None] * across[:, None, columns])[..., None] * (grey - box)


def _paint_screen(
    picture: Float[np.ndarray, "T W W 3"], place: Float[np.ndarray, " W"], screen: Screen
) -> None:
    """Paint a still box in front of everything else."""
    (left, right), (top, bottom) = screen.across, screen.down
    across = np.clip(place - left + 0.5, 0, 1) * np.clip(right - place + 0.5, 0, 1)
    along = np.clip(place - top + 0.5, 0, 1) * np.clip(bottom - place + 0.5, 0, 1)
    rows, columns = _span(place, top, bottom), _span(place, left, right)
    box = picture[:, rows, columns]
    box += (along[rows, None] * across[columns])[..., None] * (screen.grey - box)


# The sound ----------------------------------------------------------------------------------------

_LOUDEST = 0.4  # amplitude of a contact of strength 1; leaves headroom for overlapping ones
_ROLLING = 0.05  # RMS amplitude of a ball that rolls at the fastest speed


def synthesise(world: World, scene: Scene) -> Float[np.ndarray, " A"]:
    """Synthesise the sound of `scene`: its contacts, and balls while they roll."""
    audio = np.zeros(round(scene.seconds * world.rate))
    for i, body in enumerate(scene.bodies):
        rng = stream(scene.seed, 2 + i)
        soft, hard = _responses(world.rate, body, rng)
        if body.kind == "roll":
            audio += _rolling(len(audio), world.rate, body, soft, rng)
        for time, strength in body.contacts:
            start = round(time * world.rate)
            ring = (_LOUDEST * strength) * (soft + strength * (hard - soft))
            tail = audio[start : start + len(ring)]
            tail += ring[: len(tail)]
    return np.clip(audio, -1, 1).astype(np.float32)


def _responses(
    rate: int, body: Body, rng: np.random.Generator
) -> tuple[Float[np.ndarray, " R"], Float[np.ndarray, " R"]]:
    """Draw the sounds of a contact of strength 0 and of one of strength 1, both with peak 1.

    Both have the partials of the body and a burst of noise, which is brighter in the second.
    """
    material = body.material
    t = np.arange(int(rate * 7 * max(material.decay, material.burst))) / rate
    pitch = material.pitch * (7 / body.radius) ** 0.8 * (1 + 0.06 * rng.uniform(-1, 1))
    tone = np.zeros(len(t))
    for ratio in material.partials:
        level = ratio**-0.7 * rng.uniform(0.8, 1.2)
        decay = material.decay * ratio**-0.5
        if pitch * ratio < 0.48 * rate:
            tone += level * np.exp(-t / decay) * np.sin(2 * np.pi * pitch * ratio * t)
    tone *= material.tone / np.abs(tone).max()
    count = min(len(t), int(rate * 7 * material.burst))
    white = np.fft.rfft(rng.standard_normal(count))
    frequency = np.fft.rfftfreq(count, 1 / rate)

    def with_burst(edge: float) -> Float[np.ndarray, " R"]:
        burst = np.fft.irfft(white / (1 + (frequency / edge) ** 2), count)
        burst *= np.exp(-t[:count] / material.burst)
        sound = tone.copy()
        sound[:count] += (1 - material.tone) * burst / np.abs(burst).max()
        return sound / np.abs(sound).max()

    return with_burst(material.edge), with_burst(4 * material.edge)


def _rolling(
    samples: int,
    rate: int,
    body: Body,
    response: Float[np.ndarray, " R"],
    rng: np.random.Generator,
) -> Float[np.ndarray, " A"]:
    """Return noise with the spectrum of the body and a level that follows its speed."""
    t = np.arange(samples) / rate
    size = 1 << (samples + len(response)).bit_length()
    spectrum = np.fft.rfft(rng.standard_normal(samples), size)
    noise = np.fft.irfft(spectrum * np.fft.rfft(response, size), size)[:samples]
    speed = np.abs(body.x.at(t)[1]) / FASTEST["roll"]
    bumps = 1 + 0.4 * np.sin(2 * body.turn.at(t)[0])
    return _ROLLING * speed * bumps * noise / noise.std()


# Files --------------------------------------------------------------------------------------------


def write_clip(world: World, seed: int, folder: Path) -> Path:
    """Write `<seed>.mp4` (H.264/AAC), then `<seed>.json` with the events; return the mp4's path."""
    folder.mkdir(parents=True, exist_ok=True)
    made = generate_clip(world, seed)
    bodies = made.scene.bodies
    target = folder / f"{seed}.mp4"
    record = {
        "file": target.name,
        "seed": seed,
        "kind": bodies[0].kind,
        "material": bodies[0].material.name,
        "kinds": [body.kind for body in bodies],
        "materials": [body.material.name for body in bodies],
        "split": split_of(seed),
        "seconds": made.scene.seconds,
        "events": [asdict(event) for event in made.events],
        "world": asdict(world),
    }
    write_frames(made.frames, target, fps=world.fps, wave=made.audio, rate=world.rate)
    with atomic_write(target.with_suffix(".json")) as part:
        part.write_text(json.dumps(record, indent=1) + "\n")
    return target


def write_world(world: World, seeds: Iterable[int], folder: Path, *, processes: int = 1) -> Path:
    """Write the clips of `seeds` that `folder` lacks, and a list of all its clips, `clips.csv`.

    The files do not depend on the order of the seeds, on the number of processes, or on whether
    the writing was interrupted. Returns the path of the list.

    Raises:
        WorldError: the folder holds clips of another world, or a seed belongs to no split.
    """
    wanted = sorted(set(seeds))
    for seed in wanted:
        split_of(seed)
    there = {record["seed"] for record in _records(world, folder)}
    missing = [seed for seed in wanted if seed not in there]
    write = partial(write_clip, world, folder=folder)
    with tqdm(total=len(missing), unit="clip", disable=None) as bar:
        if processes == 1:
            for seed in missing:
                write(seed)
                bar.update()
        elif missing:
            for _ in map_in_processes(write, missing, processes=processes, chunk=8):
                bar.update()
    columns = ("file", "seed", "kind", "material", "split")
    rows = [[record[c] for c in columns] for record in _records(world, folder)]
    target = folder / "clips.csv"
    with atomic_write(target) as part, part.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
    return target


def read_events(path: Path) -> tuple[Event, ...]:
    """Read the events of a clip, given the path of its mp4 or of the JSON beside it.

    Raises:
        WorldError: there is no JSON, or it does not describe a clip.
    """
    return tuple(Event(**event) for event in _record(path.with_suffix(".json"))["events"])


def _record(path: Path) -> dict:
    """Read the record of a finished clip."""
    try:
        record = json.loads(path.read_text())
        if {"seed", "events", "world"} <= record.keys():
            return record
    except FileNotFoundError:
        raise WorldError(f"{path} is missing: write the clip again with write_clip") from None
    except (ValueError, AttributeError, RecursionError):
        pass
    raise WorldError(f"{path} does not describe a clip: remove it and write the clip again")


def _records(world: World, folder: Path) -> list[dict]:
    """Read the records of the finished clips in `folder`, sorted by seed."""
    ours, base = (json.loads(json.dumps(asdict(w))) for w in (world, World()))
    records = []
    for path in folder.glob("[0-9]*.json"):
        record = _record(path)
        # Records that are older than the hard grade lack its fields; they have the base's values.
        if {**base, **record["world"]} != ours:
            raise WorldError(f"{folder} holds clips of another world: use another folder")
        if path.with_suffix(".mp4").exists():
            records.append(record)
    return sorted(records, key=lambda record: record["seed"])
