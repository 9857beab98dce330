"""Decoded clips for training the encoders themselves: the first window of each, as arrays.

Training the mapper needs no pictures or sound: it reads features (`mfm_jax.data.features`).
"""

import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mfm_jax.data.clips import Clip
from mfm_jax.data.records import Failure, Field, RecordSource, Writing
from mfm_jax.errors import MediaError
from mfm_jax.foley.world import KINDS, MATERIALS
from mfm_jax.media.audio import RATE
from mfm_jax.media.frames import windows
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.typing import Float

ONSETS = 32
"""Onset times kept of a window: the hard grade has up to 15 in 2.56 s."""

SHORTEST = 0.5
"""Seconds that a clip must show: the rest of a window is a picture held still, and silence."""

DESCRIPTION = "media.json"
"""Written last: a media folder with it is complete."""

_NAMES = tuple(material.name for material in MATERIALS)


def samples_of(spec: WindowSpec) -> int:
    """Audio samples of a window at 16 kHz."""
    return round(spec.seconds * RATE)


def first_window(clip: Clip, spec: WindowSpec) -> tuple[Window, Float[np.ndarray, " A"]]:
    """The frames of a clip's first window, and its sound, as long as the video has it.

    Raises:
        MediaError: the clip cannot be read, has no sound, or is over before it is `SHORTEST` long.
    """
    wave = read_audio(clip.path)
    if wave is None:
        raise MediaError(f"{clip.path} has no sound: leave it out")
    window = next(windows(clip.path, spec, start=clip.start))
    if window.seconds < SHORTEST:
        raise MediaError(
            f"{clip.path} shows {window.seconds:.2f} s from {clip.start:g} s on, and less than "
            f"{SHORTEST:g} s is too short: leave it out"
        )
    first = round(clip.start * RATE)
    return window, wave[first : first + samples_of(spec)]


def decode_clip(clip: Clip, spec: WindowSpec) -> dict[str, np.ndarray]:
    """The arrays of a clip's first window, padded or cut to its length.

    `cavp` and `timechat` are uint8 `[T, H, W, 3]`, `timechat_seconds` the float32 times of the
    latter, and `wave` is int16 mono at 16 kHz.

    Raises:
        MediaError: as `first_window`.
    """
    window, wave = first_window(clip, spec)
    whole = np.pad(wave, (0, samples_of(spec) - len(wave)))
    return {
        "cavp": window.cavp_THWC,
        "timechat": window.timechat_THWC,
        "timechat_seconds": window.timechat_seconds.astype(np.float32),
        "wave": np.rint(np.clip(whole, -1, 1) * 32767).astype(np.int16),
    }


def to_float(wave: np.ndarray) -> np.ndarray:
    """A stored wave as float32 in [-1, 1]."""
    return wave.astype(np.float32) / 32767


def labels(clip: Clip, seconds: float) -> dict[str, np.ndarray]:
    """What the JSON beside a Foley clip tells about its first window, which lasts `seconds`.

    `materials` and `kinds` are float32, 1 at the indices into `MATERIALS` and `KINDS` of all
    bodies, and `material` and `kind` the indices of the first body. `onsets` are the times of the
    first 32 contacts in the window, in seconds since its start, and `onset_materials` the indices
    of what was hit; -1 after the last. Where there is no JSON all are zeros or -1.
    """
    file = clip.path.with_suffix(".json")
    record = json.loads(file.read_text()) if file.exists() else {}
    material, kind = record.get("material"), record.get("kind")
    contacts = [(event["time"] - clip.start, event) for event in record.get("events", [])]
    contacts = [(time, event) for time, event in contacts if 0 <= time < seconds][:ONSETS]
    onsets = np.full(ONSETS, -1, np.float32)
    onsets[: len(contacts)] = [time for time, _ in contacts]
    onset_materials = np.full(ONSETS, -1, np.int32)
    onset_materials[: len(contacts)] = [_index(_NAMES, event["material"]) for _, event in contacts]
    return {
        "material": np.array(_index(_NAMES, material), np.int32),
        "kind": np.array(_index(KINDS, kind), np.int32),
        # Records from before the hard grade tell the only body alone.
        "materials": _present(_NAMES, record.get("materials", [material])),
        "kinds": _present(KINDS, record.get("kinds", [kind])),
        "onsets": onsets,
        "onset_materials": onset_materials,
    }


def _index(names: Sequence[str], name: str | None) -> int:
    return names.index(name) if name in names else -1


def _present(names: Sequence[str], present: Sequence[str | None]) -> Float[np.ndarray, " names"]:
    return np.array([name in present for name in names], np.float32)


def fields(spec: WindowSpec) -> dict[str, Field]:
    """The arrays of an example."""
    frames, pixels = spec.timechat_frames, spec.timechat_size
    return {
        "cavp": Field((spec.cavp_frames, spec.cavp_size, spec.cavp_size, 3), "uint8"),
        "timechat": Field((frames, pixels, pixels, 3), "uint8"),
        "timechat_seconds": Field((frames,), "float32"),
        "wave": Field((samples_of(spec),), "int16"),
        "material": Field((), "int32"),
        "kind": Field((), "int32"),
        "materials": Field((len(MATERIALS),), "float32"),
        "kinds": Field((len(KINDS),), "float32"),
        "onsets": Field((ONSETS,), "float32"),
        "onset_materials": Field((ONSETS,), "int32"),
    }


def write_media(
    clips: Iterable[Clip], spec: WindowSpec, folder: Path, *, processes: int = 1
) -> Path:
    """Decode `clips` into `folder`, where they are not there yet; returns `folder`.

    An interrupted run goes on where it stopped, and runs beside each other do no harm. Clips that
    cannot be read or have no sound are left out and listed in `failed.csv`.

    Raises:
        DataError: `folder` holds something else, or no clip can be read.
    """
    writing = Writing.begin(folder, DESCRIPTION, {"spec": asdict(spec)}, fields(spec), clips)
    write = partial(_write_shard, writing, spec)
    missing = writing.missing()
    with tqdm(total=len(missing), unit="shard", disable=None) as bar:
        if processes == 1 or len(missing) < 2:
            for shard in missing:
                write(shard)
                bar.update()
        else:
            # A forked process would inherit JAX's threads and PyAV's; a spawned one starts clean.
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=spawn) as pool:
                for _ in pool.map(write, missing):
                    bar.update()
    writing.finish()
    return Path(folder)


def _write_shard(writing: Writing, spec: WindowSpec, shard: int) -> None:
    def examples() -> Iterator[dict[str, np.ndarray] | Failure]:
        for clip in writing.shards[shard]:
            try:
                yield {**decode_clip(clip, spec), **labels(clip, spec.seconds)}
            except MediaError as error:
                yield Failure(clip.id, str(error))

    writing.write(shard, examples())


class MediaSource(RecordSource):
    """The decoded clips of `write_media`, in the order of their ids.

    An element holds the arrays of `decode_clip` and `labels`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, DESCRIPTION)
