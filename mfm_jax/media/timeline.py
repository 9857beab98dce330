"""When each frame of a video is shown, read from its packets.

Times come from timestamps, never from a nominal frame rate, so that variable frame rates are right.
Frames are known by the number of their packet: after a clock has started again, or behind an edit
list, the same timestamp may occur twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from av.format import Flags as FormatFlags

from mfm_jax.errors import MediaError
from mfm_jax.media.clock import Stamps, shifts
from mfm_jax.media.containers import Limits, opened, reading
from mfm_jax.media.index import INDEXED, is_continuous
from mfm_jax.media.orientation import Orientation, orientation_of
from mfm_jax.media.packets import UNKNOWN, Packets, Reader, has_flag, tick_of
from mfm_jax.media.structure import is_cut, is_fragmented, is_joined
from mfm_jax.typing import Bool, Float, Int

CUT_SHORT = 0.25
"""Seconds that a file may have lost at its end; one that lacks more is truncated."""

SEEK = 10.0
"""Seconds from which on a later start is sought, in containers that have an index."""

LONG = 10.0
"""Seconds that the last frame may declare to last without anything else that lasts so long."""

GUESS = 0.25
"""Seconds by which a time that FFmpeg guesses may be wrong: a few frames."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """The shown frames of a video in order, read from its packets; only one frame is decoded.

    A timeline that begins at a later start covers the frames from the keyframe before it on.
    """

    pts: Int[np.ndarray, " frames"]  # continuous, in units of time_base
    origin: int  # when the first frame of the video is shown, in units of time_base
    gap: int  # the usual time between frames, in units of time_base
    time_base: Fraction  # seconds
    duration: int  # from `origin` to the end of the last frame, in units of time_base
    orientation: Orientation
    width: int  # pixels as stored
    height: int
    sought: int | None  # where to seek before packets are numbered, in units of time_base
    frame_of: Int[np.ndarray, " packets"]  # the frame that a packet shows; -1 for none
    discarded: Bool[np.ndarray, " packets"]  # True for what an edit list cuts off
    keys: Bool[np.ndarray, " packets"]  # True where a decoder can begin
    presented: Int[np.ndarray, " packets"]  # continuous time at which a packet is shown
    shift: Int[np.ndarray, " packets"]  # what makes the timestamps of a packet continuous
    decoder_order: bool  # the decoder's order counts: presentation times are made up
    audio: int | None  # index of the audio stream
    audio_shift: Float[np.ndarray, " audio_packets"]  # the same for its packets, in seconds

    @property
    def has_audio(self) -> bool:
        """True if there is an audio stream."""
        return self.audio is not None

    @property
    def times(self) -> Float[np.ndarray, " frames"]:
        """When each frame appears, in seconds since the video's first."""
        ticks = (self.pts - self.origin) * self.time_base.numerator
        return ticks / self.time_base.denominator

    @property
    def seconds(self) -> float:
        """Length of the video, or of what was read of it, from its first frame on."""
        return float(self.duration * self.time_base)

    @property
    def begin(self) -> float:
        """Raw timestamp of the video's first frame, in seconds."""
        return float(self.origin * self.time_base)

    def entries(self, frame: int) -> Iterator[int]:
        """Yield the packets at which a decoder may begin to show `frame` and all later ones.

        The nearest comes first. Where it has no whole keyframe (periodic intra refresh), another
        one that is about twice as far away is needed.
        """
        needed = int(np.argmax(self.frame_of >= frame))
        keys = np.flatnonzero(self.keys[: needed + 1])
        shown = self.frame_of[keys]
        keys = keys[(shown >= 0) & (shown <= frame)]
        ahead = 1
        while not self.decoder_order and ahead <= len(keys):
            yield int(keys[-ahead])
            ahead *= 2
        yield 0


def read_timeline(path: Path, start: float = 0.0, stop: float = np.inf) -> Timeline:
    """Read when each frame of a video is shown.

    Args:
        start: seconds since the video's first frame, from which frames are wanted.
        stop: the same, to which they are wanted; more may be read.

    Raises:
        MediaError: the file is missing, empty, damaged, cut short, beyond the limits, or not a
            video.
    """
    line = _sought_timeline(path, start, stop) if start > SEEK else None
    line = line or _timeline_from_beginning(path, stop)
    Limits.of_environment().check(path, seconds=line.seconds)
    return line


def _sought_timeline(path: Path, start: float, stop: float) -> Timeline | None:
    """Read the timeline around a later start.

    Returns:
        None if the file must be read from its beginning: the index does not lead to `start`, or
        the file may be cut short behind it.
    """
    with opened(path) as (container, stream), reading(path):
        if not container.format.name.startswith(INDEXED):
            return None
        reader = Reader(container, stream)
        origin = reader.read_origin()
        if origin is None:
            return None
        base = tick_of(stream)
        sought = origin + int(start / base)
        try:
            reader.seek(sought)
        except FFmpegError:  # a start behind the end, or no index
            return None
        begin = float(origin * base)
        if not is_continuous(container, stream, reader.sound, begin + start, begin + stop):
            return None
        over = reader.read(stop, origin)
        if not reader.shows(sought) or (over and is_cut(path, container.format.name)):
            return None
        return _timeline(reader, sought, origin)


def _timeline_from_beginning(path: Path, stop: float) -> Timeline:
    with opened(path) as (container, stream), reading(path):
        reader = Reader(container, stream)
        complete = reader.read(np.inf if reader.restarts else stop)
        if reader.first is None or not any(reader.video.kept):
            raise MediaError(f"{path} has no frame that can be decoded: re-encode it as mp4")
        line = _timeline(reader)
        if complete:
            _check_complete(path, container, stream, line, len(reader.video))
    return line


def _timeline(reader: Reader, sought: int | None = None, origin: int | None = None) -> Timeline:
    stream, video, frame = reader.stream, reader.video, reader.first
    assert frame is not None, "the caller has checked it"
    base = tick_of(stream)
    kept = np.frombuffer(video.kept, np.uint8).astype(bool) & ~reader.second_fields()
    streams = [video.stamps(float(base), False)]
    if reader.sound is not None:
        streams.append(reader.audio.stamps(float(tick_of(reader.sound)), True))
    # Where an index was used, the times come from it and are continuous.
    still = [np.zeros(len(s.place)) for s in streams]
    found = shifts(streams, restarts=reader.restarts) if sought is None else still
    video_shift, audio_shift = (*found, np.zeros(0))[:2]
    shift = np.rint(video_shift / float(base)).astype(np.int64)
    at, made_up = _presented(reader, kept, shift)
    order = np.argsort(at[kept], kind="stable")
    frame_of = np.full(len(video), -1, np.int64)
    numbers = np.arange(kept.sum())
    frame_of[kept if made_up else np.flatnonzero(kept)[order]] = numbers
    pts = at[kept][order]
    gap = _usual_gap(pts, stream)
    origin = int(pts[0]) if origin is None else origin
    lasting = np.array(video.lasting, np.int64)[kept][order]
    sound_end = _end(streams[1], audio_shift) if len(streams) > 1 else -np.inf
    last = _last_duration(pts, int(lasting[-1]), gap, base, sound_end)
    return Timeline(
        pts,
        origin,
        gap,
        time_base=base,
        duration=int(pts[-1]) + last - origin,
        orientation=orientation_of(frame),
        width=frame.width,
        height=frame.height,
        sought=sought,
        frame_of=frame_of,
        discarded=np.frombuffer(video.discarded, np.uint8).astype(bool),
        keys=np.frombuffer(video.keys, np.uint8).astype(bool),
        presented=at,
        shift=shift,
        decoder_order=made_up,
        audio=None if reader.sound is None else reader.sound.index,
        audio_shift=audio_shift,
    )


def _presented(
    reader: Reader, kept: Bool[np.ndarray, " packets"], shift: Int[np.ndarray, " packets"]
) -> tuple[Int[np.ndarray, " packets"], bool]:
    """Return the continuous time at which each packet is shown, and whether it was made up.

    AVI and elementary streams do not store it, and MPEG streams only for the first frame of
    several in a packet of theirs: what their demuxers tell of the others is a guess.
    """
    container, stream, video = reader.container, reader.stream, reader.video
    pts, dts = np.array(video.pts, np.int64), np.array(video.dts, np.int64)
    stores_none = has_flag(container, FormatFlags.no_timestamps) or container.format.name == "avi"
    if stores_none:  # even without B-frames what FFmpeg guesses may be a frame late
        pts = np.where(dts == UNKNOWN, pts, dts)
    at = np.where(pts == UNKNOWN, dts, pts)
    at[at != UNKNOWN] += shift[at != UNKNOWN]
    collide = reader.restarts and len(np.unique(at[kept])) < kept.sum()
    guessed = stream.codec_context.has_b_frames and (stores_none or collide)
    if not (guessed or (pts[kept] == UNKNOWN).any()):
        return at, False
    # A frame of these is shown when the decoder hands it out, at the time of one packet after the
    # other, and as much later as the first one.
    told = dts if (dts[kept] != UNKNOWN).any() else pts
    both = np.flatnonzero((pts != UNKNOWN) & (dts != UNKNOWN) & kept)
    delay = 0 if stores_none or not len(both) else int(pts[both[0]] - dts[both[0]])
    filled = _filled(told + delay * (told != UNKNOWN), stream, video)
    if collide:
        filled = _evened(filled, kept, stream, video)
    return filled + shift, True


def _evened(
    at: Int[np.ndarray, " packets"],
    kept: Bool[np.ndarray, " packets"],
    stream: av.VideoStream,
    video: Packets,
) -> Int[np.ndarray, " packets"]:
    """Return guessed times at the distances that the packets declare, but for real leaps."""
    evened, follows = at.copy(), None
    guess = GUESS / tick_of(stream)
    for i in np.flatnonzero(kept):
        if follows is not None and abs(follows - at[i]) < guess:
            evened[i] = follows
        follows = int(evened[i]) + (video.lasting[i] or _nominal_gap(stream))
    return evened


def _filled(
    at: Int[np.ndarray, " packets"], stream: av.VideoStream, video: Packets
) -> Int[np.ndarray, " packets"]:
    """Return times where some are unknown: each packet follows the one before.

    What comes before the first known time leads up to it.
    """
    usual = _nominal_gap(stream)
    lasting = [own or usual for own in video.lasting]
    known = np.flatnonzero(at != UNKNOWN)
    follows = int(at[known[0]]) - sum(lasting[: known[0]]) if len(known) else 0
    filled = at.copy()
    for i, time in enumerate(at.tolist()):
        filled[i] = follows if time == UNKNOWN else time
        follows = int(filled[i]) + lasting[i]
    return filled


def _end(stream: Stamps, shift: Float[np.ndarray, " packets"]) -> float:
    """Return when the last packet of a stream ends, in continuous seconds."""
    ends = stream.ends + shift
    return float(np.nanmax(ends)) if np.isfinite(ends).any() else -np.inf


def _last_duration(pts, declared: int, gap: int, base: Fraction, sound_end: float) -> int:
    """Return how long the last frame is shown, in ticks; what the file declares may be wrong."""
    gaps = np.diff(pts)
    if not declared or not len(gaps):
        return declared or gap
    regular = np.percentile(gaps, 90) <= 1.5 * gap
    if regular and declared <= gap / 2:  # perhaps that of one field of it
        return gap
    sound_left = sound_end / float(base) - int(pts[-1]) if np.isfinite(sound_end) else 0
    believed = max(int(LONG / base), int(gaps.max()), int(sound_left))
    return declared if declared <= believed else gap


def _usual_gap(pts: Int[np.ndarray, " frames"], stream: av.VideoStream) -> int:
    """Return the time from one frame to the next, in ticks, for packets that do not say it."""
    if len(pts) > 1:
        return max(1, int(np.median(np.diff(pts))))
    return _nominal_gap(stream)


def _nominal_gap(stream: av.VideoStream) -> int:
    """Return the time between frames that the header of a stream declares, in ticks."""
    rate = stream.average_rate or stream.guessed_rate or 25
    return max(1, round(1 / rate / tick_of(stream)))


def _check_complete(path: Path, container, stream, line: Timeline, packets: int) -> None:
    """Refuse a truncated file, and several in one of which only the first is read.

    A file whose index comes first can be cut anywhere and still be read without an error.

    Raises:
        MediaError: the file ends before its frames do, or goes on behind them.
    """
    if is_joined(path, container.format.name):
        raise MediaError(
            f"{path} is several files joined byte by byte, of which players show the first: "
            "split it, or join the recordings with a video editor"
        )
    if not is_cut(path, container.format.name):
        return
    found, lost = line.seconds, 0.0
    if container.format.name.startswith("mov"):
        lost = float((len(stream.index_entries) - packets) * line.gap * line.time_base)
        if is_fragmented(path):
            raise MediaError(
                f"{path} is cut short (after {found:.2f} s): copy or download it again"
            )
    elif container.duration is not None:
        begin = (container.start_time or 0) / av.time_base
        lost = begin + container.duration / av.time_base - (line.begin + found)
    if lost > CUT_SHORT:
        raise MediaError(
            f"{path} is cut short ({found:.2f} s of {found + lost:.2f} s): "
            "copy or download it again"
        )
