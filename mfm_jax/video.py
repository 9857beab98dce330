"""Video files: what is in them, the frames the encoders see, and new sound beside the picture.

Times are seconds since a video's first frame. They come from the packets' timestamps, never from
a nominal frame rate, so that variable frame rates are right.
"""

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Interpolation
from PIL import Image

from mfm_jax.audio import RATE
from mfm_jax.paths import MediaError, written_whole
from mfm_jax.typing import Float, Int, UInt8
from mfm_jax.windows import (
    Window,
    WindowSpec,
    cavp_frame_indices,
    cavp_frame_seconds,
    timechat_frame_indices,
)

BICUBIC = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""TimeChat's scaler. Without the flags it is a level too dark and halves the width of colours."""

CUT_SHORT = 0.25
"""Seconds by which a file may end before the length it declares; the rest are truncated."""

AUDIO_GAP = 0.05
"""Seconds: larger jumps of an audio stream's clock are gaps, smaller ones are its rounding."""

CONTAINERS = (".mp4", ".mov", ".m4v", ".mkv")
"""What can be written: the formats that hold nearly every video codec, and AAC."""

AAC_FRAME = 1024
"""Samples of one AAC packet."""

AAC_BIT_RATE = 96_000
"""Bits per second: the most that AAC allows one channel at 16 kHz."""


# --- what is in a file ----------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` finds."""

    seconds: float  # from the first frame's beginning to the last one's end
    fps: float  # frames / seconds: the mean, where the rate varies
    frames: int
    width: int  # pixels as displayed, that is after the rotation
    height: int
    rotation: int  # degrees clockwise by which a player turns the stored frames: 0, 90, 180, 270
    has_audio: bool


@dataclass(frozen=True, eq=False)
class _Timeline:
    """The shown frames of a video, in order, from its packets; nothing but one frame is decoded."""

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
        return float(self.duration * self.time_base)


def probe(path: Path) -> VideoInfo:
    """Read a video's length, rate, size and rotation in one pass over its packets.

    Raises:
        MediaError: the file is missing, empty, damaged, cut short, or not a video.
    """
    line = _timeline(path)
    width, height = line.width, line.height
    if line.rotation in (90, 270):
        width, height = height, width
    frames, seconds = len(line.pts), line.seconds
    return VideoInfo(
        seconds, frames / seconds, frames, width, height, line.rotation, line.has_audio
    )


@contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its main video stream (not the cover picture of a song)."""
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
def _reading(path: Path) -> Iterator[None]:
    """Turn a failure to read or decode `path` into one clear line."""
    try:
        yield
    except FFmpegError as error:
        reason = (error.strerror or "unknown error").lower()
        raise MediaError(
            f"{path} is damaged ({reason}): download it again or re-encode it"
        ) from None


def _timeline(path: Path) -> _Timeline:
    with _opened(path) as (container, stream), _reading(path):
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
        line = _Timeline(
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
    """Seconds of one tick of the stream's timestamps."""
    assert stream.time_base is not None, "every stream of an open file has one"
    return Fraction(stream.time_base)


def _usual_gap(pts: Int[np.ndarray, " frames"], stream: av.VideoStream) -> int:
    """How long a frame lasts where its packet does not say."""
    if len(pts) > 1:
        return max(1, int(np.median(np.diff(pts))))
    return round(1 / (stream.average_rate or 25) / _time_base(stream))


def _check_complete(path, container, stream, line: _Timeline, latest: float) -> None:
    """A file whose index comes first can be cut anywhere and still be read without an error."""
    if stream.duration is not None:
        declared, found = float(stream.duration * line.time_base), line.seconds
    else:  # Matroska declares one end for all streams
        declared, found = (container.duration or 0) / av.time_base, latest
    if found < declared - CUT_SHORT:
        raise MediaError(
            f"{path} is cut short ({found:.2f} s of {declared:.2f} s): copy or download it again"
        )


# --- which frames to look at ----------------------------------------------------------------------


def resize_cavp(
    frame_HWC: UInt8[np.ndarray, "H W 3"], size: int = 224
) -> UInt8[np.ndarray, "S S 3"]:
    """Squash to a square with Pillow's antialiased bilinear filter, as CAVP's original does."""
    resized = Image.fromarray(frame_HWC).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


@dataclass(frozen=True, eq=False)
class _Plan:
    """Which frames of the video one window shows, by their number."""

    index: int
    start: float
    seconds: float
    cavp: np.ndarray
    cavp_seconds: np.ndarray
    timechat: np.ndarray
    timechat_seconds: np.ndarray

    @property
    def first(self) -> int:
        return int(min(self.cavp[0], self.timechat[0]))

    @property
    def last(self) -> int:
        return int(max(self.cavp[-1], self.timechat[-1]))

    def blank(self, spec: WindowSpec) -> Window:
        """The window before anything is painted."""
        cavp, timechat = (
            np.zeros((len(numbers), size, size, 3), np.uint8)
            for numbers, size in (
                (self.cavp, spec.cavp_size),
                (self.timechat, spec.timechat_size),
            )
        )
        return Window(
            self.index,
            self.start,
            self.seconds,
            cavp,
            self.cavp_seconds,
            timechat,
            self.timechat_seconds,
        )

    def paint(self, window: Window, number: int, picture: "_Picture") -> None:
        """Put frame `number` of the video wherever the window shows it."""
        if (slots := self.cavp == number).any():
            window.cavp_THWC[slots] = picture.cavp_HWC
        if (slots := self.timechat == number).any():
            window.timechat_THWC[slots] = picture.timechat_HWC


def _plans(line: _Timeline, spec: WindowSpec, begin_at: float) -> Iterator[_Plan]:
    shown = line.times
    for index, later in enumerate(spec.starts(line.seconds - begin_at)):
        start = begin_at + later
        times = shown - start
        begin, end = np.searchsorted(times, [-1e-6, spec.seconds - 1e-6])
        if begin == end:  # no frame appears in this window: one from before it stays on
            begin = end - 1
        picked = begin + timechat_frame_indices(int(end - begin), spec.timechat_frames)
        picked = picked[np.arange(spec.timechat_frames) * len(picked) // spec.timechat_frames]
        slots = cavp_frame_indices(times, spec.cavp_fps, spec.cavp_frames)
        yield _Plan(
            index,
            start,
            seconds=min(float(spec.seconds), line.seconds - start),
            cavp=slots,
            cavp_seconds=cavp_frame_seconds(times, slots, spec.cavp_fps),
            timechat=picked,
            timechat_seconds=np.maximum(times[picked], 0.0),
        )


@dataclass(frozen=True, eq=False)
class _Picture:
    """A decoded frame, upright, in the sizes of the encoders; converted once and only if wanted."""

    frame: av.VideoFrame
    spec: WindowSpec
    rotation: int  # degrees clockwise

    @cached_property
    def cavp_HWC(self) -> UInt8[np.ndarray, "S S 3"]:
        upright = self._turn(self.frame.to_ndarray(format="rgb24"))
        return resize_cavp(upright, self.spec.cavp_size)

    @cached_property
    def timechat_HWC(self) -> UInt8[np.ndarray, "S S 3"]:
        size = self.spec.timechat_size
        squashed = self.frame.reformat(size, size, "rgb24", interpolation=BICUBIC)
        return self._turn(squashed.to_ndarray())

    def _turn(self, pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(pixels, -round(self.rotation / 90)))


def windows(path: Path, spec: WindowSpec, start: float = 0.0) -> Iterator[Window]:
    """The windows of a video from `start` (s) on, each with as many frames as `spec` says.

    A window starts every `seconds - overlap`; a video no longer than one window gives one. Past
    the video's end the last frame is held. A deliberate deviation from TimeChat, for fixed shapes
    under `jit`: where a window has fewer frames than it asks for, frames repeat instead of being
    fewer. One pass over the packets plans, one over the frames picks them, and about two windows
    are in memory at a time.

    Raises:
        MediaError: as `probe`, or the video is damaged further on, or over before `start`.
    """
    line = _timeline(path)
    if start >= line.seconds:
        raise MediaError(
            f"{path} ends at {line.seconds:.2f} s: nothing is left from {start:g} s on"
        )
    ahead = deque(_plans(line, spec, start))
    begun: deque[tuple[_Plan, Window]] = deque()
    for number, frame in enumerate(_frames(path, line)):
        picture = _Picture(frame, spec, line.rotation)
        while ahead and ahead[0].first <= number:
            begun.append((ahead[0], ahead.popleft().blank(spec)))
        for plan, window in begun:
            plan.paint(window, number, picture)
        while begun and begun[0][0].last <= number:
            yield begun.popleft()[1]
        if not (ahead or begun):
            return


def _frames(path: Path, line: _Timeline) -> Iterator[av.VideoFrame]:
    """Every frame of the timeline in order; a neighbour stands in for one that is not decoded."""
    shown, held = 0, None
    with _opened(path) as (container, stream), _reading(path):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            number = int(np.searchsorted(line.pts, frame.pts, side="right")) - 1
            for _ in range(shown, number):
                yield frame if held is None else held
            if number >= shown:
                yield frame
            shown, held = max(shown, number + 1), frame
    if held is None:
        raise MediaError(f"{path} has no frame that can be decoded: re-encode it as mp4")
    for _ in range(shown, len(line.pts)):
        yield held


# --- sound ----------------------------------------------------------------------------------------


def read_audio(path: Path, rate: int = RATE) -> Float[np.ndarray, " A"] | None:
    """The sound of a video on the video's clock, or None where it has no audio stream.

    Mono as the mean of the channels (so a sound that is the same in all keeps its level), `rate`
    samples a second, as long as the video. Sample 0 sounds with the first frame: an audio stream
    that starts later is padded in front, one that starts earlier is cut.

    Raises:
        MediaError: as `probe`, or the sound is damaged.
    """
    line = _timeline(path)
    if not line.has_audio:
        return None
    with _opened(path) as (container, _), _reading(path):
        if container.streams.audio[0].codec_context is None:
            raise MediaError(f"{path} has an unknown audio codec: re-encode it as mp4")
        wave, own = _mono(container, float(line.pts[0] * line.time_base), line.seconds)
        if own != rate:
            wave = _resampled(wave, own, rate)
    return _fitted(wave, round(line.seconds * rate))


def _mono(container, start: float, seconds: float) -> tuple[Float[np.ndarray, " A"], int]:
    """The mean of the channels from `start` on for `seconds`, and its own sample rate."""
    own, wave, position = RATE, np.zeros(0, np.float32), None
    for frame in container.decode(container.streams.audio[0]):
        if position is None:  # the frame knows: HE-AAC plays at twice the rate that it declares
            own = frame.sample_rate
            wave = np.zeros(round(seconds * own), np.float32)
        at = position or 0 if frame.time is None else round((frame.time - start) * own)
        if position is None or abs(at - position) > AUDIO_GAP * own:
            position = at
        samples = _mean_of_channels(frame)
        begin, end = max(position, 0), min(position + len(samples), len(wave))
        if begin < end:
            wave[begin:end] = samples[begin - position : end - position]
        position += len(samples)
    return wave, own


def _mean_of_channels(frame: av.AudioFrame) -> Float[np.ndarray, " A"]:
    """Not libswresample's mono, which makes the same sound in two channels 3 dB louder."""
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind in "iu":
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / full - (samples.dtype.kind == "u")
    return samples.mean(axis=0)


def _resampled(wave: Float[np.ndarray, " own"], own: int, rate: int) -> Float[np.ndarray, " A"]:
    resampler = av.AudioResampler("fltp", "mono", rate)
    frame = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = own, 0, Fraction(1, own)
    pieces = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([piece.to_ndarray()[0] for piece in pieces])


def _fitted(wave: Float[np.ndarray, " A"], samples: int) -> Float[np.ndarray, " {samples}"]:
    """Cut, or padded with silence at the end."""
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))


# --- writing --------------------------------------------------------------------------------------


def write_video(
    source: Path, target: Path, wave: Float[np.ndarray, " A"], rate: int = RATE
) -> None:
    """The picture of `source`, packet by packet as it is, with `wave` as its only sound.

    Rotation, colours and timestamps (counted from the first frame) stay. The sound starts with the
    first frame and is cut, or padded with silence, to the length of the video. `target` appears
    when it is complete. Frames that an mp4's edit list hides are shown again in a `.mkv`.

    Raises:
        MediaError: `source` cannot be read, `target` cannot be written, or they are one file.
    """
    _remux(source, target, wave, rate)


def write_silent(source: Path, target: Path) -> None:
    """The picture of `source`, packet by packet as it is, without any sound.

    Raises:
        MediaError: as `write_video`.
    """
    _remux(source, target, None, RATE)


def _remux(source: Path, target: Path, wave: np.ndarray | None, rate: int) -> None:
    line, target = _timeline(source), Path(target)
    if target.exists() and target.samefile(source):
        raise MediaError(f"{target} is the source itself: choose another output path")
    with _opened(source) as (container, stream), _writing(target) as out:
        out.metadata.update(container.metadata)
        try:
            picture = out.add_stream_from_template(stream)
        except ValueError:
            raise MediaError(
                f"cannot write {target} (no place for {stream.codec_context.name}): name it .mkv"
            ) from None
        packets = [_copied_packets(source, container, stream, picture, line)]
        if wave is not None:
            track = _aac_track(out, rate)
            packets.append(_aac_packets(track, _fitted(wave, round(line.seconds * rate)), rate))
        _mux(out, packets)


def _copied_packets(path, container, stream, picture, line: _Timeline) -> Iterator[av.Packet]:
    """The packets of `stream`, moved to `picture` and to a first frame at 0, else untouched."""
    first = int(line.pts[0])
    waiting: list[av.Packet] = []  # Matroska does not say when the first ones are decoded
    with _reading(path):
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


def encode_video(
    frames: Iterable[UInt8[np.ndarray, "H W 3"]],
    target: Path,
    *,
    fps: float | int | Fraction,
    wave: Float[np.ndarray, " A"] | None = None,
    rate: int = RATE,
    crf: int = 18,
) -> None:
    """Write RGB frames, and `wave` where given, as H.264/AAC; the same input gives the same bytes.

    Args:
        fps: frames per second.
        rate: samples of `wave` per second.
        crf: x264's quality, 0 (lossless) to 51.

    Raises:
        ValueError: there are no frames, or their height or width is odd (4:2:0 needs even ones).
        MediaError: `target` cannot be written.
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
    """A file to write, with its index in front so that it plays while it loads."""
    target = Path(target)
    if target.suffix.lower() not in CONTAINERS:
        raise MediaError(f"cannot write {target}: name it {', '.join(CONTAINERS)}")
    options = {} if target.suffix.lower() == ".mkv" else {"movflags": "+faststart"}
    with written_whole(target) as part:
        try:
            with av.open(str(part), "w", options=options) as out:
                yield out
        except FFmpegError as error:
            reason = (error.strerror or "unknown error").lower()
            raise MediaError(
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
    """The packets of `wave`, which starts at time 0; the encoder's delay goes before that."""
    samples = np.clip(wave, -1, 1).astype(np.float32)
    for at in range(0, len(samples), AAC_FRAME):
        frame = av.AudioFrame.from_ndarray(samples[None, at : at + AAC_FRAME], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        yield from stream.encode(frame)
    yield from stream.encode()
