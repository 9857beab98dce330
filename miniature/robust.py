"""Scores the same clips re-encoded at other frame rates and sizes, and rotated."""

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
from jax import numpy as jnp
from PIL import Image
from tqdm import tqdm

from mfm_jax.bundle import Bundle
from mfm_jax.cli import arguments as options
from mfm_jax.foley.scores import Heard
from mfm_jax.foley.world import SPLITS, World, write_world
from mfm_jax.media.probe import probe
from mfm_jax.media.windows import cavp_frame_indices
from mfm_jax.media.write import write_frames
from mfm_jax.storage.files import atomic_write, write_text
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.typing import UInt8
from miniature.document import LABELS, POINTS, RESULTS, Table, number
from miniature.report import print_tables
from miniature.scores import hear, open_clips
from miniature.sounds import KnownClip, Synthesiser

ORIGINAL = "original"


@dataclass(frozen=True)
class Variant:
    """A change of a clip's file; by default it is only encoded again."""

    name: str  # also the name of its folder
    fps: Fraction | None = None
    side: int | None = None  # pixels; clips are square and stay square
    degrees: int = 0  # clockwise rotation in the display matrix, which the stored frames undo


VARIANTS = (
    Variant("again"),
    Variant("15fps", fps=Fraction(15)),
    Variant("24fps", fps=Fraction(24)),
    Variant("29.97fps", fps=Fraction(30_000, 1001)),
    Variant("60fps", fps=Fraction(60)),
    Variant("360p", side=360),
    Variant("720p", side=720),
    Variant("rotated", degrees=90),
)


def read_frames(path: Path) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Return all frames of a clip as they are stored."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_variant(source: Path, target: Path, variant: Variant) -> None:
    """Re-encode `source` as silent H.264.

    At another frame rate, frames are chosen as ffmpeg's `fps` filter would choose them, so the
    length changes by up to half a frame.

    Raises:
        MediaError: `source` cannot be read or `target` cannot be written.
    """
    info, frames = probe(source), read_frames(source)
    fps = Fraction(info.fps).limit_denominator(1001)
    if variant.fps is not None:
        times = np.arange(info.frames) / info.fps
        fps = variant.fps
        shown = cavp_frame_indices(times, float(fps), round(info.seconds * fps))
        frames = [frames[i] for i in shown]
    if variant.side is not None:
        size = (variant.side, variant.side)
        frames = [
            np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
            for frame in frames
        ]
    target.parent.mkdir(parents=True, exist_ok=True)
    if variant.degrees:
        _write_turned(frames, target, fps, variant.degrees)
    else:
        write_frames(frames, target, fps=fps)


def _write_turned(frames: Iterable[np.ndarray], target: Path, fps: Fraction, degrees: int) -> None:
    """Store frames rotated anticlockwise, with a display matrix that rotates them back."""
    with TemporaryDirectory(dir=target.parent) as folder:
        stored = Path(folder) / "stored.mp4"
        write_frames((np.rot90(frame, degrees // 90) for frame in frames), stored, fps=fps)
        with (
            atomic_write(target) as part,
            av.open(str(stored)) as source,
            av.open(str(part), "w") as out,
        ):
            picture = out.add_stream_from_template(source.streams.video[0])
            picture.set_display_rotation(-degrees)
            for packet in source.demux(video=0):
                if packet.size:
                    packet.stream = picture
                    out.mux(packet)


def as_variant(clips: Sequence[KnownClip], variant: Variant, folder: Path) -> Iterator[KnownClip]:
    """Yield the clips with their files replaced by variants, which are written if missing."""
    for clip in clips:
        target = folder / variant.name / clip.path.name
        if not target.exists():
            write_variant(clip.path, target, variant)
        yield replace(clip, path=target)


def robust(
    bundle: Path, clips: Sequence[KnownClip], folder: Path, variants: Sequence[Variant] = VARIANTS
) -> dict[str, Any]:
    """Score the clips and their variants, and compare the scores.

    All get the same noise. The files of the variants are in `folder`.

    Raises:
        BundleError, MediaError: the bundle or a file cannot be used.
    """
    synthesiser = Synthesiser.open(bundle)
    listener = Bundle.open(bundle).load("listener", jnp.float32)
    scores: dict[str, dict[str, Any]] = {}
    files = {ORIGINAL: list(clips)}
    files |= {variant.name: list(as_variant(clips, variant, folder)) for variant in variants}
    for name, its in files.items():
        made = synthesiser.sounds(its, "video")
        waves = list(tqdm(made, desc=name, total=len(its), disable=None))
        windows = [len(synthesiser.spec.starts(probe(clip.path).seconds)) for clip in its]
        heard = sum(hear(listener, its, waves), Heard())
        scores[name] = {"windows": float(np.mean(windows)), **heard.scores()}
    gaps = {v.name: differences(scores[v.name], scores[ORIGINAL]) for v in variants}
    largest = {
        score: max(gaps, key=lambda name, score=score: abs(gaps[name][score]))  # type: ignore[misc]
        for score in LABELS
    }
    return {
        "scores": scores,
        "differences": gaps,
        "largest": {s: {"variant": v, "difference": gaps[v][s]} for s, v in largest.items()},
        "tables": tables(scores, gaps, largest),
    }


def differences(scores: dict[str, float], original: dict[str, float]) -> dict[str, float]:
    """Return scores minus the original's: shares in percentage points, others in their units."""
    return {
        name: (scores[name] - original[name]) * (100 if name in POINTS else 1) for name in LABELS
    }


def tables(
    scores: dict[str, dict[str, Any]],
    gaps: dict[str, dict[str, float]],
    largest: dict[str, str],
) -> list[Table]:
    """Return tables of the scores and of their differences from the original's."""
    rows = [
        [name, number(its["windows"], 2), *(number(its[score]) for score in LABELS)]
        for name, its in scores.items()
    ]
    apart = [[name, *(signed(its[score], score) for score in LABELS)] for name, its in gaps.items()]
    last = ["largest", *(f"{signed(gaps[v][s], s)} ({v})" for s, v in largest.items())]
    return [
        {"title": "Scores", "columns": ["file", "windows a clip", *LABELS.values()], "rows": rows},
        {
            "title": "Difference from the original (shares in points, the last two in their units)",
            "columns": ["file", *LABELS.values()],
            "rows": [*apart, last],
        },
    ]


def signed(gap: float, score: str) -> str:
    """Return a table cell with a difference: one decimal for points, three for other units."""
    return f"{gap:+.1f}" if score in POINTS else f"{gap:+.3f}"


def first_clips(workdir: Path, count: int) -> list[KnownClip]:
    """Open the first `count` test clips; those that are missing are made."""
    folder, start = workdir / "test_clips", SPLITS["test"].start
    seeds = range(start, start + count)
    write_world(World(), seeds, folder, processes=os.cpu_count() or 1)
    return open_clips(folder, count)


def add_robust(parser: argparse.ArgumentParser) -> None:
    """Add the options of `robust`."""
    add_common(parser)
    parser.add_argument("--count", type=int, default=96, help="test clips")
    parser.set_defaults(run=run_robust)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that makes sound for other videos."""
    parser.add_argument("--bundle", type=options.path, default=TINY_BUNDLE)
    parser.add_argument(
        "--workdir", type=options.path, default=Path("runs/tiny"), help="folder of clips and videos"
    )
    parser.add_argument(
        "-o", "--output", type=options.path, default=RESULTS, help="folder of results"
    )


def run_robust(args: argparse.Namespace) -> None:
    """Write the variants, score them and write the results."""
    clips = first_clips(args.workdir, args.count)
    start_time = time.monotonic()
    found = robust(args.bundle, clips, args.workdir / "robust")
    about = {
        "command": args.command_line,
        "clips": args.count,
        "seconds": time.monotonic() - start_time,
    }
    write_text(args.output / "robust.json", json.dumps({**about, **found}, indent=1) + "\n")
    print_tables(found["tables"])
