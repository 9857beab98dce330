"""Measures long clips where their windows meet: cross-faded, and denoised jointly."""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import soundfile
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.encoders import window_spec
from mfm_jax.foley.contacts import QUIET
from mfm_jax.foley.scores import Heard
from mfm_jax.foley.world import SPLITS, World, write_clip, write_world
from mfm_jax.inference.generate import generate
from mfm_jax.media.audio import log_mel
from mfm_jax.media.windows import WindowSpec
from mfm_jax.storage.files import write_text
from mfm_jax.typing import Float
from miniature.document import LABELS, Table, number
from miniature.report import print_tables
from miniature.robust import add_common
from miniature.scores import hear, open_clips
from miniature.sounds import KnownClip

METHODS = {"cross-faded": False, "joint": True}
"""Whether windows are denoised jointly, by the name of the row."""
HALF = 16  # frames of 10 ms on each side of the middle of an overlap: all of 0.32 s
BESIDE = 25  # frames on either side of it, whose means are compared
EVERY = 8  # frames from one place elsewhere to the next
STATISTICS = {
    "flux": "mean change of the log-mel from frame to frame, in the overlap",
    "change": "difference of the mean spectra beside the overlap",
    "level": "difference of the mean levels beside the overlap",
}
"""What is measured at each seam and elsewhere, in nats."""


@dataclass(frozen=True)
class Spread:
    """A statistic at seams, beside the same statistic at all other places."""

    seams: Float[np.ndarray, " S"]
    elsewhere: Float[np.ndarray, " N"]

    def summary(self) -> dict[str, float]:
        """Return means, the median rank of seams elsewhere, and the share above its 95 %."""
        ranks = np.searchsorted(np.sort(self.elsewhere), self.seams) / len(self.elsewhere)
        return {
            "seams": float(self.seams.mean()),
            "elsewhere": float(self.elsewhere.mean()),
            "median_rank": float(np.median(ranks)),
            "above_95": float((ranks > 0.95).mean()),
            "count": len(self.seams),
        }


def seam_frames(spec: WindowSpec, seconds: float) -> list[int]:
    """Return the frame of 10 ms in the middle of each overlap of a clip's windows."""
    starts = spec.starts(seconds)[1:]
    return [round(100 * (start + spec.overlap / 2)) for start in starts]


def spreads(waves: Sequence[Float[np.ndarray, " A"]], spec: WindowSpec) -> dict[str, Spread]:
    """Measure the statistics of sounds at 16 kHz at their seams and elsewhere."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in STATISTICS}
    for wave in waves:
        mel = np.maximum(np.asarray(log_mel(np.asarray(wave, np.float32))), QUIET)
        seams = np.array(seam_frames(spec, len(wave) / 16_000))
        edge = HALF + BESIDE
        others = [
            at
            for at in range(edge, len(mel) - edge, EVERY)
            if np.abs(seams - at).min(initial=edge + 1) > edge
        ]
        inside = [at for at in seams if edge <= at < len(mel) - edge]
        for places, side in ((inside, 0), (others, 1)):
            for at in places:
                for name, value in _statistics(mel, at).items():
                    found[name][side].append(value)
    return {name: Spread(*map(np.array, pair)) for name, pair in found.items()}


def _statistics(mel: Float[np.ndarray, "T M"], at: int) -> dict[str, float]:
    before = mel[at - HALF - BESIDE : at - HALF].mean(axis=0)
    after = mel[at + HALF : at + HALF + BESIDE].mean(axis=0)
    return {
        "flux": float(np.abs(np.diff(mel[at - HALF : at + HALF + 1], axis=0)).mean()),
        "change": float(np.abs(after - before).mean()),
        "level": abs(float(after.mean() - before.mean())),
    }


def long_clips(folder: Path, seconds: float, count: int) -> list[KnownClip]:
    """Open test clips of this length; those that are missing are made."""
    start = SPLITS["test"].start
    write_world(replace(World(), seconds=seconds), range(start, start + count), folder)
    return open_clips(folder, count)


def sounds(
    bundle: Path, clips: Sequence[KnownClip], folder: Path, joint: bool, seed: int
) -> list[Float[np.ndarray, " A"]]:
    """Generate the sounds of clips as `mfm generate` does."""
    made = generate(
        [clip.path for clip in clips], folder, bundle=bundle, format="wav", joint=joint, seed=seed
    )
    return [soundfile.read(path, dtype="float32")[0] for path in made]


def compare(
    bundle: Path, clips: Sequence[KnownClip], folder: Path, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Score both methods, and the true sound, over clips and seeds."""
    opened = Bundle.open(bundle)
    spec, listener = window_spec(opened), opened.load("listener", jnp.float32)
    truth = [clip.wave for clip in clips]
    ways = [("true sound", truth, list(clips))]
    for name, joint in METHODS.items():
        waves = [
            wave
            for seed in seeds
            for wave in sounds(bundle, clips, folder / f"{name}_{seed}", joint, seed)
        ]
        ways.append((name, waves, list(clips) * len(seeds)))
    return [
        {
            "way": name,
            "seconds": len(clips[0].wave) / 16_000,
            "scores": sum(hear(listener, known, waves), Heard()).scores(),
            "statistics": {n: s.summary() for n, s in spreads(waves, spec).items()},
        }
        for name, waves, known in ways
    ]


def peak_memory(bundle: Path, video: Path, folder: Path, joint: bool) -> float:
    """Return the largest resident size in MiB of a process that generates one sound (Linux)."""
    arguments = [
        "generate", str(video), "-o", str(folder / "out.wav"), "--bundle", str(bundle),
        *(["--joint"] if joint else []),
    ]  # fmt: skip
    code = (
        f"from mfm_jax.cli import main; assert main({arguments!r}) == 0; "
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE)
    return int(done.stdout) / 1024


def memory(
    bundle: Path, folder: Path, lengths: Sequence[float] = (10.0, 60.0)
) -> list[dict[str, Any]]:
    """Measure the peak memory of clips of each length."""
    rows = []
    for seconds in lengths:
        place = folder / f"one_{seconds:g}s"
        place.mkdir(parents=True, exist_ok=True)
        video = place / "0.mp4"
        if not video.exists():
            write_clip(replace(World(), seconds=seconds), 0, place)
        # The median of three, because the memory depends on what two threads happen to overlap.
        peaks = {
            name: median(peak_memory(bundle, video, place, joint) for _ in range(3))
            for name, joint in METHODS.items()
        }
        rows.append({"seconds": seconds, "peak_mib": peaks})
    return rows


def tables(rows: Sequence[dict[str, Any]], peaks: Sequence[dict[str, Any]]) -> list[Table]:
    """Return the tables of scores, of statistics at the seams, and of memory."""
    scores = [
        [row["way"], f"{row['seconds']:g}", *(number(row["scores"][name]) for name in LABELS)]
        for row in rows
    ]
    seams = [
        [
            row["way"],
            f"{row['seconds']:g}",
            name,
            *(number(its[key]) for key in ("seams", "elsewhere", "median_rank", "above_95")),
        ]
        for row in rows
        for name, its in row["statistics"].items()
    ]
    memory_rows = [
        [f"{row['seconds']:g} s", *(f"{peak:.0f}" for peak in row["peak_mib"].values())]
        for row in peaks
    ]
    return [
        {
            "title": "Scores of long clips",
            "columns": ["sound", "s", *LABELS.values()],
            "rows": scores,
        },
        {
            "title": "At the seams, and elsewhere",
            "columns": [
                "sound", "s", "statistic", "mean at seams", "mean elsewhere",
                "median rank of a seam", "share above 95 % of elsewhere",
            ],
            "rows": seams,
        },
        {"title": "Peak memory, MiB", "columns": ["clip", *METHODS], "rows": memory_rows},
    ]  # fmt: skip


def add_seams(parser: argparse.ArgumentParser) -> None:
    """Add the options of `seams`."""
    add_common(parser)
    parser.add_argument("--count", type=int, default=8, help="clips of 30 s; half as many of 60 s")
    parser.add_argument("--seeds", type=int, default=2, help="sounds of each clip")
    parser.set_defaults(run=run_seams)


def run_seams(args: argparse.Namespace) -> None:
    """Make the sounds, measure them and write the results."""
    folder = args.workdir / "seams"
    lengths = {30.0: args.count, 60.0: (args.count + 1) // 2}
    clips = [long_clips(folder / f"clips_{s:g}s", s, count) for s, count in lengths.items()]
    start_time = time.monotonic()
    rows = []
    for its in clips:
        made = folder / f"made_{len(its)}"
        rows += compare(args.bundle, its, made, range(args.seeds))
    peaks = memory(args.bundle, folder)
    about = {
        "command": args.command_line,
        "clips": {f"{s:g} s": count for s, count in lengths.items()},
        "seeds": args.seeds,
        "seconds": time.monotonic() - start_time,
    }
    found = {**about, "rows": rows, "memory": peaks, "tables": tables(rows, peaks)}
    write_text(args.output / "seams.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
