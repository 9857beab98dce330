"""Write video files: a new soundtrack for an existing picture, or new frames."""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError

from mfm_jax.errors import WriteError
from mfm_jax.media.audio import RATE
from mfm_jax.media.containers import opened, reading
from mfm_jax.media.soundtrack import fitted
from mfm_jax.media.timeline import Timeline, read_timeline
from mfm_jax.storage.files import atomic_write
from mfm_jax.typing import Float, UInt8

CONTAINERS = (".mp4", ".mov", ".m4v", ".mkv")
"""Suffixes of the formats that can be written: they hold AAC and nearly every video codec."""

AAC_FRAME = 1024
"""Samples in one AAC packet."""

AAC_BIT_RATE = 96_000
"""Bits per second: the most that AAC allows one channel at 16 kHz."""


def write_video(
    source: Path, target: Path, wave: Float[np.ndarray, " A"], rate: int = RATE
) -> None:
    """Copy the picture of `source`, packet by packet, and make `wave` its only sound.

    Rotation, colours and timestamps (counted from the first frame) stay. The sound starts with the
    first frame and is cut, or padded with silence, to the length of the video. `target` appears
    when it is complete. Frames that an mp4's edit list hides are shown again in a `.mkv`.

    Raises:
        MediaError: `source` cannot be read.
        WriteError: `target` cannot be written, or is `source`.
    """
    line, target = read_timeline(source), Path(target)
    if target.exists() and target.samefile(source):
        raise WriteError(f"{target} is the source itself: choose another output path")
    with opened(source) as (container, stream), _writing(target) as out:
        out.metadata.update(container.metadata)
        try:
            picture = out.add_stream_from_template(stream)
        except ValueError:
            codec = stream.codec_context.name
            raise WriteError(
                f"cannot write {target} (its format cannot hold {codec}): name it .mkv"
            ) from None
        copied = _copied_packets(source, container, stream, picture, line)
        sound = fitted(wave, round(line.seconds * rate))
        _mux(out, [copied, _aac_packets(_aac_track(out, rate), sound, rate)])


def _copied_packets(path, container, stream, picture, line: Timeline) -> Iterator[av.Packet]:
    """Yield the packets of `stream` for `picture`, with the first frame at 0, else untouched."""
    first = line.origin
    waiting: list[av.Packet] = []  # Matroska does not say when the first ones are decoded
    with reading(path):
        for packet in container.demux(stream):
            if not packet.size:
                continue
            packet.stream = picture
            packet.pts = (packet.dts if packet.pts is None else packet.pts) - first
            packet.duration = packet.duration or line.gap
            if packet.dts is None:
                waiting.append(packet)
                continue
            packet.dts -= first
            for ahead, early in enumerate(reversed(waiting), start=1):
                early.dts = packet.dts - ahead * line.gap
            yield from waiting
            waiting.clear()
            yield packet
    for packet in waiting:
        packet.dts = packet.pts
        yield packet


def write_frames(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    target: Path,
    *,
    fps: float | int | Fraction,
    wave: Float[np.ndarray, " A"] | None = None,
    rate: int = RATE,
    crf: int = 18,
) -> None:
    """Write RGB frames, and `wave` if given, as H.264/AAC; the same input gives the same bytes.

    Args:
        fps: frames per second.
        rate: samples of `wave` per second.
        crf: x264's quality, 0 (lossless) to 51.

    Raises:
        ValueError: there are no frames, or their height or width is odd (4:2:0 needs even ones).
        WriteError: `target` cannot be written.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frames to write to {target}")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"frames of {width}x{height}: H.264 needs even sizes")
    fps = Fraction(fps).limit_denominator(65_535)
    with _writing(target) as out:
        # One thread, and no macroblock tree: with it the same input gives several different files.
        quality = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
        picture = out.add_stream("libx264", rate=fps, options=quality)
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        picture.codec_context.thread_count = 1
        packets = [_h264_packets(picture, chain([first], frames), fps)]
        if wave is not None:
            packets.append(_aac_packets(_aac_track(out, rate), wave, rate))
        _mux(out, packets)


@contextmanager
def _writing(target: Path) -> Iterator[av.container.OutputContainer]:
    """Open a file for writing, with its index in front so that it plays while it loads."""
    target = Path(target)
    if target.suffix.lower() not in CONTAINERS:
        raise WriteError(f"cannot write {target}: name it {', '.join(CONTAINERS)}")
    options = {} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
    with atomic_write(target) as part:
        try:
            with av.open(str(part), "w", options=options) as out:
                yield out
        except FFmpegError as error:
            reason = (error.strerror or "unknown error").lower()
            raise WriteError(
                f"cannot write {target} ({reason}): name it .mkv or choose another folder"
            ) from None


def _mux(out: av.container.OutputContainer, streams: Sequence[Iterator[av.Packet]]) -> None:
    """Write the packets of several streams in the order in which they are decoded."""

    def seconds(packet):
        return packet.dts * packet.time_base

    for packet in heapq.merge(*streams, key=seconds):
        out.mux(packet)


def _h264_packets(stream, frames: Iterable[np.ndarray], fps: Fraction) -> Iterator[av.Packet]:
    for index, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
        frame.pts, frame.time_base = index, 1 / fps
        yield from stream.encode(frame)
    yield from stream.encode()


def _aac_track(out: av.container.OutputContainer, rate: int) -> av.AudioStream:
    stream = out.add_stream("aac", rate=rate, bit_rate=AAC_BIT_RATE)
    stream.layout = "mono"
    return stream


def _aac_packets(
    stream: av.AudioStream, wave: Float[np.ndarray, " A"], rate: int
) -> Iterator[av.Packet]:
    """Yield the packets of `wave`, which starts at time 0; the encoder's delay lies before that."""
    samples = np.clip(wave, -1, 1).astype(np.float32)
    for at in range(0, len(samples), AAC_FRAME):
        frame = av.AudioFrame.from_ndarray(samples[None, at : at + AAC_FRAME], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        yield from stream.encode(frame)
    yield from stream.encode()
