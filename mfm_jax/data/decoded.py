"""Decoded clips for training the encoders themselves: the first window of each, as arrays.

Training the mapper needs no pictures or sound: it reads features (`mfm_jax.data.features`).
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from mfm_jax.data.clips import Clip, is_hidden
from mfm_jax.data.records import DatasetWriter, Failure, Field, RecordSource
from mfm_jax.data.sources import Labels
from mfm_jax.errors import MediaError, one_line
from mfm_jax.media.audio import RATE, prepare_for_audiomae
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.windows import (
    SLACK,
    View,
    Window,
    WindowSpec,
    blank_window,
    cavp_view,
    timechat_view,
)
from mfm_jax.runtime.failures import FailureLog
from mfm_jax.runtime.workers import map_in_processes
from mfm_jax.storage.copies import local_copy
from mfm_jax.storage.files import signature
from mfm_jax.typing import Float

SHORTEST = 0.5
"""Seconds that a clip must show: the rest of a window is a picture held still, and silence."""

THREADS = 4
"""Threads that look how long clips are."""

DESCRIPTION = "media.json"
"""Written last: a folder of decoded clips with it is complete."""


@dataclass(frozen=True)
class ClipSpec:
    """The windows and frames of clips that CAVP and TimeChat learn from, by default as released.

    Raises:
        ValueError: as `WindowSpec`.
    """

    seconds: float | int = 10.24  # length of a window
    overlap: float | int = 1.28  # seconds that a window shares with the next
    cavp_fps: float | int = 4  # frames per second
    cavp_size: int = 224  # pixels a side
    timechat_frames: int = 96  # per window
    timechat_size: int = 224  # pixels a side

    whole: ClassVar[bool] = False
    """Shorter clips are padded."""

    def __post_init__(self) -> None:
        _ = self.windows  # which checks the numbers

    @classmethod
    def tiny(cls) -> "ClipSpec":
        """Windows of the shipped miniature."""
        return cls(
            seconds=2.56,
            overlap=0.32,
            cavp_fps=12.5,
            cavp_size=32,
            timechat_frames=8,
            timechat_size=64,
        )

    @property
    def windows(self) -> WindowSpec:
        """The windows of a clip, as both encoders see them."""
        views = {
            "cavp": cavp_view(self.cavp_fps, self.cavp_size),
            "timechat": timechat_view(self.timechat_frames, self.timechat_size),
        }
        return WindowSpec(self.seconds, self.overlap, views)


@dataclass(frozen=True)
class SynchformerSpec:
    """The window of a clip that Synchformer learns from: its frames, as the encoder sees them.

    Padding would tell by how much the sound is shifted, so nothing is padded.
    """

    seconds: float  # length of a window
    fps: float  # frames per second
    height: int  # pixels
    width: int

    whole: ClassVar[bool] = True
    """Shorter clips are left out."""

    @property
    def windows(self) -> WindowSpec:
        """The window of a clip."""
        view = View((self.height, self.width), "cover_bicubic", fps=self.fps)
        return WindowSpec(self.seconds, 0.0, {"synchformer": view})


DecodedSpec = ClipSpec | SynchformerSpec
"""What is decoded of a clip: the frames of each view of `windows`, and the sound."""


def samples_of(spec: WindowSpec | DecodedSpec) -> int:
    """Return the audio samples of a window at 16 kHz."""
    return round(spec.seconds * RATE)


def first_window(
    clip: Clip, spec: WindowSpec, *, whole: bool = False
) -> tuple[Window, Float[np.ndarray, " A"]]:
    """Read the frames of a clip's first window, and its sound as far as the video has it.

    Args:
        whole: picture and sound must fill the window, but for `SLACK`; otherwise the picture need
            only be `SHORTEST` long.

    Raises:
        MediaError: the clip cannot be read, has no sound, or is too short.
    """
    if is_hidden(clip.path):
        raise MediaError(f"{clip.path} is a hidden file and no video: leave it out")
    with local_copy(clip.path) as here:
        return _first_window(replace(clip, path=here), spec, whole)


def _first_window(
    clip: Clip, spec: WindowSpec, whole: bool
) -> tuple[Window, Float[np.ndarray, " A"]]:
    before = signature(clip.path)
    window = next(windows(clip.path, spec, start=clip.start, count=1))
    shortest = spec.seconds - SLACK if whole else SHORTEST
    if window.seconds < shortest:
        raise MediaError(
            f"{clip.path} shows {window.seconds:.2f} s from {clip.start:g} s on, and less than "
            f"{shortest:g} s is too short: leave it out"
        )
    wave = read_audio(clip.path, start=clip.start, seconds=spec.seconds)
    if wave is None:
        raise MediaError(f"{clip.path} has no sound: leave it out")
    if whole and len(wave) / RATE < shortest:
        raise MediaError(
            f"{clip.path} has {len(wave) / RATE:.2f} s of sound from {clip.start:g} s on, and less "
            f"than {shortest:g} s is too short: leave it out"
        )
    if signature(clip.path) != before:
        raise MediaError(f"{clip.path} was changed while it was read: try it again")
    return window, wave


def every_window(clips: Sequence[Clip], spec: WindowSpec) -> list[Clip]:
    """Return a clip for every window of each clip, in order, as generation cuts them.

    The first window keeps its clip's id; others have their start behind it, as `id@8.96`. A last
    window of which the video shows less than half is left out. A clip that cannot be read stays as
    it is: its failure is told when it is decoded.
    """

    def starts(clip: Clip) -> list[float]:
        try:
            with local_copy(clip.path) as here:
                seconds = probe(here).seconds - clip.start
        except Exception:
            return [0.0]
        return [at for at in spec.starts(seconds) if not at or seconds - at >= spec.seconds / 2]

    with ThreadPoolExecutor(THREADS) as pool:
        return [
            replace(clip, id=f"{clip.id}@{clip.start + at:g}", start=clip.start + at)
            if at
            else clip
            for clip, found in zip(clips, pool.map(starts, clips), strict=True)
            for at in found
        ]


def decode_clip(clip: Clip, spec: DecodedSpec) -> dict[str, np.ndarray]:
    """Read the arrays of a clip's first window, padded or cut to its length.

    The frames of each view are uint8 `[T, H, W, 3]`; `NAME_seconds` are the float32 times of those
    that are spread over the window, as TimeChat's. `wave` is int16 mono at 16 kHz.

    Raises:
        MediaError: as `first_window`.
    """
    window, wave = first_window(clip, spec.windows, whole=spec.whole)
    full = np.pad(wave, (0, samples_of(spec) - len(wave)))
    times = {name: window.seen[name].seconds.astype(np.float32) for name in _spread(spec)}
    return {
        **{name: seen.pixels for name, seen in window.seen.items()},
        **{f"{name}_seconds": seconds for name, seconds in times.items()},
        "wave": np.rint(np.clip(full, -1, 1) * 32767).astype(np.int16),
    }


def _spread(spec: DecodedSpec) -> list[str]:
    """Return the names of the views whose frames are spread over a window."""
    return [name for name, view in spec.windows.views.items() if view.frames]


def prepared_wave(element: Mapping[str, np.ndarray]) -> Float[np.ndarray, " A"]:
    """Return the sound of a decoded clip as AudioLDM2's audio networks read it."""
    wave = to_float(element["wave"])
    return prepare_for_audiomae(wave, len(wave))


def to_float(wave: np.ndarray) -> np.ndarray:
    """Return a stored wave as float32 in [-1, 1]."""
    return wave.astype(np.float32) / 32767


def fields(spec: DecodedSpec) -> dict[str, Field]:
    """Return the arrays of a decoded clip."""
    seen = blank_window(spec.windows).seen
    return {
        **{name: Field(its.pixels.shape, "uint8") for name, its in seen.items()},
        **{f"{name}_seconds": Field(seen[name].seconds.shape, "float32") for name in _spread(spec)},
        "wave": Field((samples_of(spec),), "int16"),
    }


def write_decoded(
    clips: Iterable[Clip],
    spec: DecodedSpec,
    folder: Path,
    *,
    labels: Labels | None = None,
    processes: int = 1,
) -> list[Failure]:
    """Decode `clips` into `folder`, where they are not there yet, and return those left out.

    An interrupted run goes on where it stopped, and runs beside each other do no harm. Clips that
    cannot be read or have no sound are left out and listed in `failed.csv`.

    Args:
        labels: what is stored of each clip beside its pictures and its sound.
        processes: how many decode at the same time.

    Raises:
        DataError: `folder` holds something else, or no clip can be read.
    """
    arrays = {**fields(spec), **(labels.fields() if labels is not None else {})}
    writer = DatasetWriter.open(folder, DESCRIPTION, {"spec": asdict(spec)}, arrays, clips)
    write = partial(_write_shard, writer, spec, labels)
    missing = writer.missing()
    with tqdm(total=len(missing), unit="shard", disable=None) as bar:
        alone = processes == 1 or len(missing) < 2
        done = (
            map(write, missing) if alone else map_in_processes(write, missing, processes=processes)
        )
        for failed in done:
            for clip, reason in failed:
                bar.write(one_line(f"{clip} is left out: {reason}"), file=sys.stderr)
            bar.update()
    return writer.finish()


def _write_shard(
    writer: DatasetWriter, spec: DecodedSpec, labels: Labels | None, shard: int
) -> list[Failure]:
    log = FailureLog(writer.folder)

    def examples() -> Iterator[dict[str, np.ndarray] | Failure]:
        for clip in writer.shards[shard]:
            try:
                known = {} if labels is None else labels.of(clip, spec.seconds)
                yield {**decode_clip(clip, spec), **known}
            except Exception as error:
                yield Failure(clip.id, log.reason(str(clip.path), error))

    return writer.write(shard, examples())


class DecodedSource(RecordSource):
    """The decoded clips of `write_decoded`, in the order of their ids.

    An element holds the arrays of `decode_clip`, and the labels if there are any.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, DESCRIPTION)
