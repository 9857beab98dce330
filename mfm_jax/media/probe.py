"""Read the length, rate, size and rotation of a video file from its packets.

Times are seconds since a video's first frame. They come from the packets' timestamps, never from
a nominal frame rate, so that variable frame rates are right.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from mfm_jax.errors import MediaError
from mfm_jax.typing import Float, Int

CUT_SHORT = 0.25
"""Seconds by which a file may end before its declared length; one that lacks more is truncated."""


@dataclass(frozen=True)
class VideoInfo:
    """Length, rate, size and rotation of a video."""

    seconds: float  # from the first frame's beginning to the last one's end
    fps: float  # frames / seconds: the mean, where the rate varies
    frames: int
    width: int  # pixels as displayed, that is after the rotation
    height: int
    rotation: int  # degrees clockwise by which a player turns the stored frames: 0, 90, 180, 270
    has_audio: bool


@dataclass(frozen=True, eq=False)
class Timeline:
    """The shown frames of a video in order, read from its packets; only one frame is decoded."""

    pts: np.ndarray  # int64, in units of time_base
    gap: int  # the usual time between frames, in units of time_base
    time_base: Fraction  # seconds
    duration: int  # from the first frame's beginning to the last one's end, in units of time_base
    rotation: int  # degrees clockwise
    width: int  # pixels as stored
    height: int
    has_audio: bool

    @property
    def times(self) -> Float[np.ndarray, " frames"]:
        """When each frame appears, in seconds since the first."""
        ticks = (self.pts - self.pts[0]) * self.time_base.numerator
        return ticks / self.time_base.denominator

    @property
    def seconds(self) -> float:
        """Length of the video."""
        return float(self.duration * self.time_base)


def probe(path: Path) -> VideoInfo:
    """Read a video's length, rate, size and rotation in one pass over its packets.

    Raises:
        MediaError: the file is missing, empty, damaged, cut short, or not a video.
    """
    line = read_timeline(path)
    width, height = line.width, line.height
    if line.rotation in (90, 270):
        width, height = height, width
    frames, seconds = len(line.pts), line.seconds
    return VideoInfo(
        seconds, frames / seconds, frames, width, height, line.rotation, line.has_audio
    )


@contextmanager
def opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file: its container and main video stream (not the cover picture of a song).

    Raises:
        MediaError: the file is missing, empty, unreadable, or has no video.
    """
    path = Path(path)
    if not path.exists():
        raise MediaError(f"{path} does not exist: check the path")
    if path.is_dir():
        raise MediaError(f"{path} is a folder: name a video file")
    if not path.stat().st_size:
        raise MediaError(f"{path} is empty: copy or download it again")
    try:
        container = av.open(str(path), metadata_errors="replace")
    except FFmpegError:
        raise MediaError(
            f"{path} is not a readable video (damaged, cut short or of another type): "
            "download it again or convert it to mp4"
        ) from None
    with container:
        pictures = [
            s for s in container.streams.video if not s.disposition & Disposition.attached_pic
        ]
        if not pictures:
            raise MediaError(f"{path} has no video stream: give a file with a picture")
        if pictures[0].codec_context is None:
            raise MediaError(f"{path} has an unknown video codec: re-encode it as mp4")
        yield container, pictures[0]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn a failure to read or decode `path` into a `MediaError`."""
    try:
        yield
    except FFmpegError as error:
        reason = (error.strerror or "unknown error").lower()
        raise MediaError(
            f"{path} is damaged ({reason}): download it again or re-encode it"
        ) from None


def read_timeline(path: Path) -> Timeline:
    """Read when each frame of a video is shown.

    Raises:
        MediaError: as `probe`.
    """
    with opened(path) as (container, stream), reading(path):
        shown: list[tuple[int, int]] = []
        first, latest = None, 0.0
        for packet in container.demux():
            if first is None and packet.stream_index == stream.index:
                first = next(iter(stream.decode(packet)), None)
            at = packet.dts if packet.pts is None else packet.pts
            if at is None or not packet.size or packet.is_discard:
                continue
            latest = max(latest, float((at + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index == stream.index:
                shown.append((at, packet.duration or 0))
        if first is None or not shown:
            raise MediaError(f"{path} has no frame that can be decoded: re-encode it as mp4")
        pts, lasting = np.array(sorted(shown), np.int64).T
        gap = _usual_gap(pts, stream)
        line = Timeline(
            pts,
            gap,
            time_base=_time_base(stream),
            duration=int(pts[-1] + (lasting[-1] or gap) - pts[0]),
            rotation=-90 * round(first.rotation / 90) % 360,
            width=first.width,
            height=first.height,
            has_audio=bool(container.streams.audio),
        )
        _check_complete(path, container, stream, line, latest)
        return line


def _time_base(stream: av.VideoStream) -> Fraction:
    """Return the seconds of one tick of the stream's timestamps."""
    assert stream.time_base is not None, "every stream of an open file has one"
    return Fraction(stream.time_base)


def _usual_gap(pts: Int[np.ndarray, " frames"], stream: av.VideoStream) -> int:
    """Return the time from one frame to the next, in ticks, for packets that do not say it."""
    if len(pts) > 1:
        return max(1, int(np.median(np.diff(pts))))
    return round(1 / (stream.average_rate or 25) / _time_base(stream))


def _check_complete(path, container, stream, line: Timeline, latest: float) -> None:
    """Refuse a truncated file.

    A file whose index comes first can be cut anywhere and still be read without an error.

    Raises:
        MediaError: the file ends before its declared length.
    """
    if stream.duration is not None:
        declared, found = float(stream.duration * line.time_base), line.seconds
    else:  # Matroska declares one end for all streams
        declared, found = (container.duration or 0) / av.time_base, latest
    if found < declared - CUT_SHORT:
        raise MediaError(
            f"{path} is cut short ({found:.2f} s of {declared:.2f} s): copy or download it again"
        )
