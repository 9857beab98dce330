"""Measures how much sound is generated for videos in which nothing happens."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mfm_jax.foley.contacts import detect_contacts
from mfm_jax.foley.scores import Contacts
from mfm_jax.foley.world import SPLITS, World, write_world
from mfm_jax.media.audio import RATE, level, log_mel
from mfm_jax.media.probe import probe
from mfm_jax.media.write import write_frames
from mfm_jax.storage.files import write_text
from mfm_jax.typing import Float, UInt8
from miniature.document import Table, number
from miniature.report import print_tables
from miniature.robust import add_common, first_clips, read_frames
from miniature.scores import open_clips
from miniature.sounds import KnownClip, Synthesiser

STILL = ("black", "static", "noise")
SECONDS = (World().seconds, 8.0)


@dataclass(frozen=True)
class Activity:
    """Onsets and level of a sound."""

    onsets: Float[np.ndarray, " N"]  # s
    seconds: float  # length of the sound
    level: float  # dBFS RMS

    @property
    def rate(self) -> float:
        """Onsets per second."""
        return len(self.onsets) / self.seconds


def measure_activity(wave: Float[np.ndarray, " A"]) -> Activity:
    """Detect the onsets and measure the level of a sound at 16 kHz."""
    onsets = detect_contacts(np.asarray(log_mel(np.asarray(wave, np.float32))))
    return Activity(onsets, len(wave) / RATE, level(wave))


def unlabelled_clip(path: Path) -> KnownClip:
    """Return a clip without true contacts, with silence of the video's length as its sound.

    Raises:
        MediaError: it cannot be read.
    """
    silence = np.zeros(round(probe(path).seconds * RATE), np.float32)
    return KnownClip(path, Contacts(np.zeros(0), ()), silence, "")


def still_frames(
    kind: str, frame: UInt8[np.ndarray, "H W 3"], count: int, seed: int
) -> UInt8[np.ndarray, "T H W 3"]:
    """Return `count` frames of the size of `frame`.

    Args:
        kind: `black`, `static` (`frame` repeated) or `noise`.
    """
    shape = (count, *frame.shape)
    if kind == "noise":
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return np.zeros(shape, np.uint8) if kind == "black" else np.broadcast_to(frame, shape)


def still_clips(
    kind: str, clips: Sequence[KnownClip], seconds: float, folder: Path
) -> list[KnownClip]:
    """Return a still video for each clip, written if it is missing.

    A static video shows the middle frame of its clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for i, clip in enumerate(clips):
        target = folder / f"{clip.path.stem}.mp4"
        if not target.exists():
            frames = read_frames(clip.path)
            frame, count = frames[len(frames) // 2], round(seconds * World().fps)
            write_frames(still_frames(kind, frame, count, i), target, fps=World().fps)
        made.append(unlabelled_clip(target))
    return made


def moving_clips(clips: Sequence[KnownClip], seconds: float, folder: Path) -> list[KnownClip]:
    """Return ordinary clips of this length: `clips` themselves, or as many new ones."""
    if seconds == World().seconds:
        return list(clips)
    start = SPLITS["test"].start
    write_world(replace(World(), seconds=seconds), range(start, start + len(clips)), folder)
    return open_clips(folder, len(clips))


def still(
    bundle: Path, clips: Sequence[KnownClip], folder: Path, lengths: Sequence[float] = SECONDS
) -> dict[str, Any]:
    """Measure the generated sound of one video of each kind and length per clip.

    Raises:
        BundleError, MediaError: the bundle or a file cannot be used.
    """
    synthesiser = Synthesiser.open(bundle)
    rows = []
    for seconds in lengths:
        place = {name: folder / f"{name}_{seconds:g}s" for name in (*STILL, "moving")}
        ordinary = moving_clips(clips, seconds, place["moving"])
        videos = {name: still_clips(name, clips, seconds, place[name]) for name in STILL}
        for name, its in {**videos, "moving": ordinary}.items():
            made = synthesiser.sounds(its, "video")
            waves = tqdm(made, desc=f"{name} {seconds:g} s", total=len(its), disable=None)
            rows.append(summary(name, seconds, [measure_activity(wave) for wave in waves]))
        truth = [measure_activity(clip.wave) for clip in ordinary]
        rows.append(summary("moving, true sound", seconds, truth))
    return {"rows": rows, "tables": [table(rows)]}


def summary(name: str, seconds: float, heard: Sequence[Activity]) -> dict[str, Any]:
    """Return means over the videos, and the largest value of any of them."""
    rates, levels = [h.rate for h in heard], [h.level for h in heard]
    return {
        "video": name, "seconds": seconds, "videos": len(heard),
        "onsets_per_second": float(np.mean(rates)), "most_onsets_per_second": max(rates),
        "level": float(np.mean(levels)), "loudest": max(levels),
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row for each kind and length."""
    columns = [
        "video", "seconds", "videos", "onsets/s", "most onsets/s", "dBFS RMS", "loudest",
    ]  # fmt: skip
    cells = [
        [
            row["video"], f"{row['seconds']:g}", row["videos"],
            number(row["onsets_per_second"]), number(row["most_onsets_per_second"]),
            number(row["level"], 1), number(row["loudest"], 1),
        ]
        for row in rows
    ]  # fmt: skip
    return {"title": "Sound for still videos", "columns": columns, "rows": cells}


def add_still(parser: argparse.ArgumentParser) -> None:
    """Add the options of `still`."""
    add_common(parser)
    parser.add_argument("--count", type=int, default=16, help="videos of each kind and length")
    parser.set_defaults(run=run_still)


def run_still(args: argparse.Namespace) -> None:
    """Write the videos, generate their sound and write the results."""
    clips = first_clips(args.workdir, args.count)
    start_time = time.monotonic()
    found = still(args.bundle, clips, args.workdir / "still")
    about = {"command": args.command_line, "seconds": time.monotonic() - start_time}
    write_text(args.output / "still.json", json.dumps({**about, **found}, indent=1) + "\n")
    print_tables(found["tables"])
