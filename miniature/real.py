"""Generates sound for real videos, which the miniature was not trained for."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from mfm_jax.cli import arguments as options
from mfm_jax.errors import MediaError
from mfm_jax.media.audio import prepare_for_audiomae
from mfm_jax.media.formats import CONTAINERS
from mfm_jax.media.probe import probe
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.spectrogram import show
from mfm_jax.media.video_info import VideoInfo
from mfm_jax.storage.files import atomic_write, write_text
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.typing import Float
from miniature.document import RESULTS, Table, number
from miniature.report import print_tables
from miniature.sounds import Synthesiser
from miniature.still import Activity, measure_activity, unlabelled_clip

FIGURE = "real.png"
COLOURS = 48  # in the figure; a log-mel compresses badly, so fewer colours make a smaller PNG


@dataclass(frozen=True)
class Result:
    """A real clip with the activity of its generated and its true sound."""

    path: Path
    info: VideoInfo
    wave: Float[np.ndarray, " A"]
    made: Activity
    true: Activity | None  # None where the file has no sound


def find_videos(folder: Path) -> list[Path]:
    """Return the videos in a folder, sorted by name.

    Raises:
        MediaError: the folder does not exist or has no video.
    """
    if not folder.is_dir():
        raise MediaError(f"{folder} is not a folder: give a folder of videos")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in CONTAINERS)
    if not found:
        raise MediaError(f"{folder} has no videos ({', '.join(CONTAINERS)}): give another folder")
    return found


def real(bundle: Path, videos: Sequence[Path]) -> list[Result]:
    """Generate sound for each video and measure its activity.

    True sounds are scaled to a peak of 0.5 before they are measured, as in training.

    Raises:
        BundleError, MediaError: the bundle or a video cannot be used.
    """
    synthesiser = Synthesiser.open(bundle)
    clips = [unlabelled_clip(path) for path in videos]
    made = synthesiser.sounds(clips, "video")
    found = []
    for path, wave in tqdm(zip(videos, made, strict=True), total=len(videos), disable=None):
        own = read_audio(path)
        true = None if own is None else measure_activity(prepare_for_audiomae(own, len(own)))
        found.append(Result(path, probe(path), wave, measure_activity(wave), true))
    return found


def report(found: Sequence[Result]) -> dict[str, Any]:
    """Return the contents of `real.json`, without the command that made it and without folders."""
    rows = [
        {
            "video": r.path.name, "seconds": r.info.seconds, "fps": r.info.fps,
            "onsets_per_second": r.made.rate, "level": r.made.level,
            "true_onsets_per_second": None if r.true is None else r.true.rate,
            "true_level": None if r.true is None else r.true.level,
        }
        for r in found
    ]  # fmt: skip
    return {"rows": rows, "tables": [table(rows)], "figure": FIGURE}


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row for each video."""
    columns = [
        "video", "seconds", "fps", "onsets/s", "true onsets/s", "dBFS RMS", "true dBFS RMS",
    ]  # fmt: skip
    cells = [
        [
            row["video"], number(row["seconds"], 1), number(row["fps"], 2),
            number(row["onsets_per_second"], 2), number(row["true_onsets_per_second"], 2),
            number(row["level"], 1), number(row["true_level"], 1),
        ]
        for row in rows
    ]  # fmt: skip
    return {"title": "Real clips", "columns": columns, "rows": cells}


def draw(target: Path, found: Sequence[Result]) -> None:
    """Draw the log-mel of each generated sound with its onsets, and the true onsets on top."""
    rows = -(-len(found) // 2)
    figure = Figure(figsize=(10, 0.5 + 1.25 * rows), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 2, squeeze=False).flatten()
    for axis in axes[len(found) :]:
        axis.set_axis_off()
    for axis, result in zip(axes, found, strict=False):
        show(axis, result.wave)
        top = axis.get_ylim()[1]
        for onset in result.made.onsets:
            axis.axvline(onset, color="white", linestyle="--", linewidth=0.8)
        if result.true is not None:
            there = result.true.onsets
            (marks,) = axis.plot(there, np.full(len(there), top), "rv", ms=4, clip_on=False)
            marks.set_in_layout(False)  # an empty plot has no position, which breaks the layout
        axis.set_xlim(0, result.made.seconds)
        axis.set_title(result.path.name, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.set_yticks([])
    figure.supxlabel("s; dashed: onsets; red, on top: those of the true sound", fontsize=8)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(COLOURS)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as part:
        picture.save(part, optimize=True)


def add_real(parser: argparse.ArgumentParser) -> None:
    """Add the options of `real`."""
    parser.add_argument("--videos", type=options.path, required=True, help="folder of videos")
    parser.add_argument("--bundle", type=options.path, default=TINY_BUNDLE)
    parser.add_argument(
        "-o", "--output", type=options.path, default=RESULTS, help="folder of results"
    )
    parser.set_defaults(run=run_real)


def run_real(args: argparse.Namespace) -> None:
    """Write the table and the figure; the videos are not changed."""
    start_time = time.monotonic()
    results = real(args.bundle, find_videos(args.videos))
    about = {"command": args.command_line, "seconds": time.monotonic() - start_time}
    found = {**about, **report(results)}
    draw(args.output / FIGURE, results)
    write_text(args.output / "real.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
