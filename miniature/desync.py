"""Test whether DeSync of the miniature's own Synchformer follows by how much a sound is shifted.

Picture and sound are cut out of test clips, each as long as the network reads, so that the sound
begins later than the picture, or earlier, and nothing is padded. A shuffled sound, that of another
clip cut at the same moments, shows what the network reads from the moments alone.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.cli import arguments as options
from mfm_jax.inference.desync import desync_logits
from mfm_jax.media.audio import RATE
from mfm_jax.media.segments import mel_segments, segment_samples
from mfm_jax.media.synchformer_frames import synchformer_frames
from mfm_jax.metrics.desync import desync_per_window
from mfm_jax.models.synchformer import Synchformer, SynchformerConfig
from mfm_jax.runtime.progress import Progress
from mfm_jax.storage.files import write_text
from mfm_jax.typing import Bool, Float
from miniature.document import Table, number
from miniature.report import print_tables
from miniature.robust import add_common, first_clips
from miniature.sounds import BATCH, KnownClip, Synthesiser
from miniature.stages import Stage, run_stages, write_report

SHIFTS = (-0.8, -0.6, -0.4, -0.2, -0.1, 0.0, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Seconds by which a sound is early."""
SIDES = ("real", "generated", "shuffled")
DRAWS = 2000
"""Resamples of the clips that an interval is computed from."""

Waves = Sequence[Float[np.ndarray, " A"]]


class Cut(NamedTuple):
    """The first frame and the first sample of the parts that are compared."""

    frame: int
    sample: int


@dataclass(frozen=True)
class Parts:
    """Cuts parts out of clips, in their middle, so that a sound is early by a known time."""

    config: SynchformerConfig
    clip: float  # seconds of every clip

    @property
    def frames(self) -> int:
        """Frames of a part: those of the segments that the network compares."""
        return self.config.video.frames * (self.config.sync.segments + 1) // 2

    @property
    def seconds(self) -> float:
        """Length of a part."""
        return self.frames / self.config.fps

    def cut(self, shift: float) -> Cut:
        """Return the cut with which the sound is early by `shift` seconds.

        Raises:
            ValueError: one of the parts does not lie within the clip.
        """
        frame = round((self.clip - self.seconds - shift) / 2 * self.config.fps)
        starts = frame / self.config.fps, frame / self.config.fps + shift
        if min(starts) < -1e-6 or max(starts) + self.seconds > self.clip + 1e-6:
            raise ValueError(f"a clip of {self.clip:g} s is too short for a shift of {shift:g} s")
        return Cut(frame, round(starts[1] * RATE))

    def inputs(
        self, pictures: np.ndarray, wave: Float[np.ndarray, " A"], cut: Cut
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the frames and the log-mels of both parts."""
        sound = wave[cut.sample : cut.sample + round(self.seconds * RATE)]
        size = segment_samples(self.config.video.frames, self.config.fps)
        mel = mel_segments(sound, size, self.config.audio.columns)
        return pictures[cut.frame : cut.frame + self.frames], mel

    def shares_contact(self, clip: KnownClip, cut: Cut) -> bool:
        """Return whether a contact of the clip is in both parts, where it can be compared."""
        starts, times = (cut.frame / self.config.fps, cut.sample / RATE), clip.truth.times
        return bool(((times >= max(starts)) & (times < min(starts) + self.seconds)).any())


@dataclass(frozen=True)
class Found:
    """The answers of the network for every sound, by shift and by clip."""

    shifts: tuple[float, ...]
    offsets: dict[str, Float[np.ndarray, "V N"]]  # by side: how early the sound seems, in seconds
    desync: dict[str, Float[np.ndarray, "V N"]]
    contact: Bool[np.ndarray, "V N"]  # there is a contact in both parts


def measure(
    network: Synchformer,
    clips: Sequence[KnownClip],
    sides: Mapping[str, Waves],
    shifts: Sequence[float] = SHIFTS,
) -> Found:
    """Compare the sounds of each clip with its picture, at every shift."""
    config = network.config
    parts = Parts(config, min(len(clip.wave) for clip in clips) / RATE)
    pictures = [
        synchformer_frames(clip.path, parts.clip, 0.0, config.fps, config.video.image)
        for clip in clips
    ]
    cuts = [parts.cut(shift) for shift in shifts]
    jobs = [
        (waves[i], cut, i) for waves in sides.values() for cut in cuts for i in range(len(clips))
    ]
    logits = []
    with Progress(len(jobs), "sounds") as progress:
        for at in range(0, len(jobs), BATCH):
            group = jobs[at : at + BATCH]
            # The last batch is padded with copies: another shape would be compiled again.
            full = group + [group[-1]] * (BATCH - len(group))
            pairs = [parts.inputs(pictures[i], wave, cut) for wave, cut, i in full]
            frames, mel = (jnp.asarray(np.stack(arrays)) for arrays in zip(*pairs, strict=True))
            logits.append(np.asarray(desync_logits(network, frames, mel))[: len(group)])
            progress.advance(len(group))
    first = np.concatenate(logits)[:, :1]  # both windows of a part are the same
    seconds, shape = config.sync.seconds(), (len(sides), len(cuts), len(clips))
    scores = desync_per_window(first, seconds).reshape(shape)
    offsets = seconds[first.argmax(axis=-1)].reshape(shape).astype(np.float64)
    return Found(
        tuple(shifts),
        dict(zip(sides, offsets, strict=True)),
        dict(zip(sides, scores, strict=True)),
        np.array([[parts.shares_contact(clip, cut) for clip in clips] for cut in cuts]),
    )


class Interval(NamedTuple):
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def shown(self) -> str:
        """A table cell."""
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


def resampled(values: Float[np.ndarray, " R"]) -> tuple[float, float]:
    """Return the ends of the 95 % interval of resampled values."""
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def mean(values: Float[np.ndarray, " N"], seed: int = 0) -> Interval:
    """Return the mean over clips, with a bootstrap over them."""
    rng = np.random.default_rng(seed)
    draws = values[rng.integers(len(values), size=(DRAWS, len(values)))].mean(axis=1)
    return Interval(float(values.mean()), *resampled(draws))


def correlation(
    shifts: Sequence[float], values: Float[np.ndarray, "V N"], seed: int = 0
) -> Interval:
    """Return Pearson's correlation of shifts and values over all clips, resampling clips.

    Values that do not vary follow nothing: their correlation counts as 0.
    """
    x, rng = np.asarray(shifts, np.float64), np.random.default_rng(seed)
    x = (x - x.mean()) / x.std()

    def of(sample: Float[np.ndarray, "V N"]) -> float:
        spread = sample.std()
        return float((x @ sample).mean() / len(x) / spread) if spread else 0.0

    count = values.shape[1]
    draws = [of(values[:, rng.integers(count, size=count)]) for _ in range(DRAWS)]
    return Interval(of(values), *resampled(np.array(draws)))


def summary(config: SynchformerConfig, found: Found) -> dict[str, Any]:
    """Return the scores of each side and shift, and how closely the score follows the shift."""
    step = float(np.diff(config.sync.seconds())[0])
    rows = []
    for side, offsets in found.offsets.items():
        for i, shift in enumerate(found.shifts):
            off = np.abs(offsets[i] - shift)
            near = off < 1.5 * step
            contact = found.contact[i]
            rows.append(
                {
                    "side": side,
                    "shift": shift,
                    "offset": mean(offsets[i])._asdict(),
                    "desync": mean(found.desync[side][i])._asdict(),
                    "right": float((off < 0.5 * step).mean()),
                    "within_one": float(near.mean()),
                    "with_contact": int(contact.sum()),
                    "within_one_with_contact": (
                        float(near[contact].mean()) if contact.any() else None
                    ),
                }
            )
    sizes = [abs(shift) for shift in found.shifts]
    follows = {
        side: {
            "offset": correlation(found.shifts, found.offsets[side])._asdict(),
            "desync": correlation(sizes, found.desync[side])._asdict(),
        }
        for side in found.offsets
    }
    return {"rows": rows, "correlations": follows}


def tables(config: SynchformerConfig, result: Mapping[str, Any]) -> list[Table]:
    """Return the tables of a summary."""
    classes = config.sync.offsets
    head = ["right class", "at most one off", "the same, with a contact in both parts"]
    cells = {
        (row["side"], row["shift"]): [
            Interval(**row["desync"]).shown,
            Interval(**row["offset"]).shown,
            number(row["right"]),
            number(row["within_one"]),
            number(row["within_one_with_contact"]),
        ]
        for row in result["rows"]
    }
    guess = float(np.abs(config.sync.seconds()).mean())
    chance = [
        number(guess), "0.000", number(1 / classes), number((3 * classes - 2) / classes**2), "",
    ]  # fmt: skip
    columns = ["DeSync (s)", "offset that is found (s)", *head]
    return [
        {
            "title": "In sync",
            "columns": ["sound", *columns],
            "rows": [
                *([side, *its] for (side, shift), its in cells.items() if not shift),
                ["a class at random", *chance],
            ],
        },
        {
            "title": "Real sound, early by a known time",
            "columns": ["early by (s)", *columns],
            "rows": [
                [f"{shift:+g}" if shift else "0", *its]
                for (side, shift), its in cells.items()
                if side == "real"
            ],
        },
        {
            "title": "Does the score follow the shift? Correlation over all shifts and clips",
            "columns": ["sound", "offset that is found, with the shift", "DeSync, with its size"],
            "rows": [
                [side, Interval(**its["offset"]).shown, Interval(**its["desync"]).shown]
                for side, its in result["correlations"].items()
            ],
        },
    ]


def stages(clips: Path) -> tuple[Stage, ...]:
    """Return the trainings of Synchformer on the Foley clips in a folder."""
    folders, source = (("bundle", "bundle"),), (f"source.folder={clips}",)
    return (
        Stage("synchformer", "tiny_synchformer", (), folders, source),
        Stage("synchformer_sync", "tiny_synchformer_sync", ("synchformer",), folders, source),
    )


def add_desync(parser: argparse.ArgumentParser) -> None:
    """Add the options of `desync`."""
    add_common(parser)
    parser.add_argument(
        "--synchformer", type=options.path, default=Path("runs/synchformer"),
        help="folder of its training, which is done or continued where it is not complete",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=192, help="test clips")
    parser.set_defaults(run=run_desync)


def run_desync(args: argparse.Namespace) -> None:
    """Train what is not trained, compare sounds with pictures and write the results."""
    folder: Path = args.synchformer
    trainings = stages(args.workdir)
    run_stages(folder, trainings, jobs=2)
    write_report(folder, trainings, args.output, "synchformer_", command=args.command_line)
    start_time = time.monotonic()
    clips = first_clips(args.workdir, args.count)
    bundle = Bundle.open(folder / "bundle")
    network = bundle.load("synchformer", jnp.float32)
    generated = list(Synthesiser.open(args.bundle).sounds(clips, "video"))
    real = [clip.wave for clip in clips]
    sides = {"real": real, "generated": generated, "shuffled": real[1:] + real[:1]}
    result = summary(network.config, measure(network, clips, sides))
    about = {
        "command": args.command_line,
        "clips": len(clips),
        "seconds": time.monotonic() - start_time,
    }
    found = {**about, **result, "tables": tables(network.config, result)}
    write_text(args.output / "desync.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
