"""Test whether every score of `mfm evaluate` puts known sounds in the right order.

From the best to the worst: the real sound itself, the real sound through the VAE, a sound made from
true LOA, one made from the video alone, and that of another clip.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.bundle import Bundle
from mfm_jax.evaluation.catalogue import Metric
from mfm_jax.evaluation.clips import Pairing, Sound
from mfm_jax.evaluation.evaluate import Settings, evaluate_pairs
from mfm_jax.evaluation.figures import Difference, mean_difference
from mfm_jax.evaluation.report import Report
from mfm_jax.media.audio import write_sound
from mfm_jax.media.write import write_video
from mfm_jax.runtime.progress import Progress
from mfm_jax.storage.files import write_text
from mfm_jax.typing import Float
from miniature.document import Table, number
from miniature.report import print_tables
from miniature.robust import add_common, first_clips
from miniature.sounds import KnownClip, Synthesiser

MADE = ("vae", "loa", "video")
LABELS = {
    "real": "real",
    "vae": "VAE",
    "loa": "true LOA",
    "video": "generated",
    "shuffled": "shuffled",
}
"""Ways of making sound in their right order, with the titles of their columns."""


def write_sides(bundle: Path, clips: Sequence[KnownClip], folder: Path) -> Pairing:
    """Write the sounds of every way, and the videos with the real sound.

    The real sound has the level of the networks' training, so that loudness can be compared.
    """
    synthesiser = Synthesiser.open(bundle)
    waves: dict[str, list[Float[np.ndarray, " A"]]] = {
        way: list(synthesiser.sounds(clips, way)) for way in MADE
    }
    waves["shuffled"] = waves["video"][1:] + waves["video"][:1]
    names = [clip.path.stem for clip in clips]
    real = {name: Sound(folder / "real" / f"{name}.mp4") for name in names}
    for way in ("real", *waves):
        (folder / way).mkdir(parents=True, exist_ok=True)
    for clip, sound in zip(clips, real.values(), strict=True):
        write_video(clip.path, sound.path, clip.wave)
    systems: dict[str, Mapping[str, Sound]] = {"real": real}
    for way, made in waves.items():
        systems[way] = {name: Sound(folder / way / f"{name}.wav") for name in names}
        for name, wave in zip(names, made, strict=True):
            write_sound(systems[way][name].path, wave)
    sources = {side: str(folder / side) for side in systems}
    return Pairing(
        tuple(sorted(names)), real, systems, sources | {"reference": str(folder / "real")}
    )


def verdict(report: Report, metric: Metric) -> str:
    """Return "ordered", or which neighbours are not in order and what is known of why."""
    wrong = []
    for better, worse in pairwise(report.systems):
        pair = [report.figures[side][metric.key].value for side in (better, worse)]
        if pair[0] is None or pair[1] is None:
            wrong.append(f"{LABELS[better]}, {LABELS[worse]}: undefined")
        elif (pair[0] - pair[1]) * (1 if metric.better == "higher" else -1) < -1e-9:
            wrong.append(
                f"{LABELS[worse]} beats {LABELS[better]}{_why(report, metric, better, worse)}"
            )
    return "; ".join(wrong) or "ordered"


def blind_spots(report: Report, metric: Metric) -> str:
    """Return which neighbours have the same score, so that it cannot tell them apart."""
    same = []
    for better, worse in pairwise(report.systems):
        pair = [report.figures[side][metric.key].value for side in (better, worse)]
        if None not in pair and math.isclose(pair[0], pair[1], abs_tol=1e-9):  # type: ignore[arg-type]
            same.append(f"{LABELS[better]} = {LABELS[worse]}")
    return ", ".join(same)


def _why(report: Report, metric: Metric, better: str, worse: str) -> str:
    if not metric.per_clip:
        figures = [report.figures[side][metric.key] for side in (better, worse)]
        if any(figure.low is None or figure.high is None for figure in figures):
            return ""
        (a, b), (c, d) = ((f.low or 0.0, f.high or 0.0) for f in figures)
        return " (their intervals overlap)" if a <= d and c <= b else " (their intervals are apart)"
    gap = _gap(report, metric, worse, better)
    if gap.p is None:
        return ""
    told = "by chance, as it seems" if gap.verdict == "undecided" else "significantly"
    return f" by {number(abs(gap.value or 0.0))} ({told}: p = {gap.p:.4f})"


def _gap(report: Report, metric: Metric, ours: str, theirs: str) -> Difference:
    values = (
        np.array([clip.scores[side].get(metric.key, math.nan) for clip in report.clips])
        for side in (ours, theirs)
    )
    return mean_difference(metric, *values)


def table(report: Report) -> Table:
    """Return a table with a row for each score that has a direction."""
    return {
        "title": f"{report.protocol['clips']} test clips",
        "columns": ["score", "better", *LABELS.values(), "order", "cannot tell apart"],
        "rows": list(_rows(report)),
    }


def _rows(report: Report) -> Iterator[list[str]]:
    for metric in report.metrics:
        if metric.better:
            figures = [report.figures[way][metric.key] for way in LABELS]
            cells = [number(figure.value, metric.digits) for figure in figures]
            order, same = verdict(report, metric), blind_spots(report, metric)
            yield [metric.label, metric.better, *cells, order, same]


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of `evaluate`."""
    add_common(parser)
    parser.add_argument("--count", type=int, default=64, help="test clips")
    parser.set_defaults(run=run_evaluate)


def run_evaluate(args: argparse.Namespace) -> None:
    """Make the sounds, evaluate them, and write the results; the page is in the workdir."""
    clips = first_clips(args.workdir, args.count)
    started = time.monotonic()
    folder: Path = args.workdir / "evaluation"
    pairing = write_sides(args.bundle, clips, folder)
    made = time.monotonic()
    contacts: dict[str, Any] = {clip.path.stem: clip.truth.times for clip in clips}
    with Progress(None, "clips") as progress:
        report = evaluate_pairs(
            pairing,
            folder / "report",
            Settings(Bundle.open(args.bundle)),
            contacts=contacts,
            command=args.command_line,
            progress=progress,
        )
    found = {
        "command": args.command_line,
        "clips": args.count,
        "clip_list_sha256": report.protocol["clip_list_sha256"],
        "seconds": time.monotonic() - started,
        "seconds_of_sounds": made - started,
        "seconds_of_evaluation": time.monotonic() - made,
        "cpu_seconds": time.process_time(),  # of all threads, with the imports
        "tables": [table(report)],
    }
    write_text(args.output / "evaluation.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
    print(f"{folder / 'report' / 'index.html'}")
