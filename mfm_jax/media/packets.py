"""Read the packets of a file: their times, and what the decoder makes of the first ones."""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.format import Flags as FormatFlags

from mfm_jax.media.clock import Stamps
from mfm_jax.media.containers import main_audio
from mfm_jax.typing import Bool

MARGIN = 2.0
"""Seconds read beyond the end that is wanted: frames are not stored in the order shown."""

LEAP = 10.0
"""Seconds from one packet to the next that do not count towards the end that is wanted."""

FIELDS = 16
"""Packets that are decoded to tell whether those without a time are second fields of a frame."""

UNKNOWN = np.iinfo(np.int64).min


class Packets:
    """The facts that are kept of the packets of one stream."""

    def __init__(self) -> None:
        self.place, self.pts, self.dts, self.lasting = (array("q") for _ in range(4))
        self.kept, self.discarded, self.keys = bytearray(), bytearray(), bytearray()

    def add(self, packet: av.Packet, place: int) -> None:
        self.place.append(place)
        self.pts.append(UNKNOWN if packet.pts is None else packet.pts)
        self.dts.append(UNKNOWN if packet.dts is None else packet.dts)
        self.lasting.append(max(0, packet.duration or 0))
        self.kept.append(not (packet.is_discard or _is_hidden(packet)))
        self.discarded.append(packet.is_discard)
        self.keys.append(packet.is_keyframe)

    def __len__(self) -> int:
        return len(self.place)

    def stamps(self, base: float, audio: bool) -> Stamps:
        """Return the times of the packets that are not discarded, in seconds."""
        decoded, shown = np.array(self.dts, np.int64), np.array(self.pts, np.int64)
        counts = ~np.frombuffer(self.discarded, np.uint8).astype(bool)
        lasting = np.array(self.lasting, np.int64)
        usual = np.median(lasting[lasting > 0]) if (lasting > 0).any() else 0
        return Stamps(
            np.array(self.place, np.int64),
            np.where((decoded != UNKNOWN) & counts, decoded * base, np.nan),
            np.where((shown != UNKNOWN) & counts, shown * base, np.nan),
            np.where(lasting > 0, lasting, usual) * base,
            audio,
        )


def _is_hidden(packet: av.Packet) -> bool:
    context = packet.stream.codec_context
    return context is not None and packet.size > 0 and hides(context.name, memoryview(packet))


def hides(codec: str, data: memoryview) -> bool:
    """Return whether a packet holds a frame that is a reference and never shown (VP8, VP9)."""
    if codec in ("vp8", "libvpx"):
        return not data[0] & 0x10
    if codec not in ("vp9", "libvpx-vp9") or data[-1] & 0xE0 == 0xC0:
        return False  # a superframe of VP9 holds a frame that is shown as well
    # Two bits of marker, two of profile and one more in profile 3; then the old frame that is
    # shown instead, the type, and whether this one is shown.
    rest = data[0] << (data[0] & 0x30 == 0x30)
    return not rest & 0x0A


class Reader:
    """Reads the packets of a file, and decodes its first frame on the way."""

    def __init__(self, container: av.container.InputContainer, stream: av.VideoStream) -> None:
        self.container, self.stream = container, stream
        self.sound = main_audio(container, stream)
        self.restarts = has_flag(container, FormatFlags.ts_discont)
        self._forget()
        stream.codec_context.flags |= CodecFlags.copy_opaque
        stream.codec_context.thread_count = 1  # for a frame or two

    def _forget(self) -> None:
        self.video, self.audio = Packets(), Packets()
        self.first: av.VideoFrame | None = None
        self.decoded = 0  # packets of the video
        self.sources: set[int] = set()  # those of them that frames came from

    def read_origin(self) -> int | None:
        """Return the timestamp of the first frame; None if the packets do not tell it."""
        lowest: int | None = None
        for _ in self._read():
            pts, dts, kept = self.video.pts[-1], self.video.dts[-1], self.video.kept[-1]
            if kept and pts == UNKNOWN:
                return None
            if kept:
                lowest = pts if lowest is None else min(lowest, pts)
            if self.first is not None and lowest is not None and dts > lowest:
                break
        return lowest

    def seek(self, target: int) -> None:
        """Go to the keyframe before `target`, in ticks of the video."""
        self.container.seek(target, stream=self.stream)
        self._forget()

    def shows(self, target: int) -> bool:
        """Return whether the decoder shows what is shown at `target`, and not only later frames.

        After a seek into a stream without whole keyframes (periodic intra refresh) it does not.
        """
        return self.first is not None and self.first.pts is not None and self.first.pts <= target

    def read(self, stop: float, origin: int | None = None) -> bool:
        """Read on until `stop` seconds after the first frame; return whether the file is over.

        Args:
            origin: the timestamp of the first frame, if it is known.
        """
        base = float(tick_of(self.stream))
        first = None if origin is None else origin * base
        before, leapt = None, 0.0
        for at in self._read():
            if at is None:
                continue
            time = at * base
            first = time if first is None else first
            leapt += time - before if before is not None and time - before > LEAP else 0.0
            before = time
            if time - leapt > first + stop + MARGIN and self.first is not None:
                return False
        return True

    def _read(self) -> Iterator[int | None]:
        """Yield the decoding time of every packet of the video; None for what an edit cuts off."""
        wanted = [self.stream, *([] if self.sound is None else [self.sound])]
        for place, packet in enumerate(demuxed(self.container, wanted)):
            mine = packet.stream_index == self.stream.index
            if mine and self._is_to_be_decoded(packet):
                self._decode(packet)
            if not packet.size:
                continue
            (self.video if mine else self.audio).add(packet, place)
            if mine:  # what was cut off may reach far beyond its piece
                yield None if packet.is_discard else packet.dts

    def _is_to_be_decoded(self, packet: av.Packet) -> bool:
        if self.first is None:
            return True
        if self.decoded < len(self.video) or self.decoded >= FIELDS:
            return False
        # Second fields are told by what the decoder makes of packets without a time.
        return packet.pts is None or UNKNOWN in self.video.pts

    def _decode(self, packet: av.Packet) -> None:
        packet.opaque = len(self.video)
        frames = self.stream.decode(packet)
        packet.opaque = None
        self.decoded = len(self.video) + bool(packet.size)
        self.sources.update(source for f in frames if (source := packet_of(f)) is not None)
        self.first = self.first or next(iter(frames), None)

    def second_fields(self) -> Bool[np.ndarray, " packets"]:
        """Return which packets hold the second field of a frame; the first one has the time."""
        unknown = np.array(self.video.pts, np.int64) == UNKNOWN
        tried = range(max(self.sources, default=-1) + 1)
        without_time = {number for number in tried if unknown[number]}
        are_fields = bool(without_time) and not without_time & self.sources
        return unknown & are_fields


def tick_of(stream: av.VideoStream | av.AudioStream) -> Fraction:
    """Return the seconds of one tick of the stream's timestamps."""
    assert stream.time_base is not None, "every stream of an open file has one"
    return Fraction(stream.time_base)


def has_flag(container: av.container.InputContainer, flag: FormatFlags) -> bool:
    """Return whether FFmpeg's description of the format of a file has a flag."""
    return bool(container.format.flags & cast(int, flag.value))


def demuxed(
    container: av.container.InputContainer, streams: Sequence[av.stream.Stream]
) -> Iterator[av.Packet]:
    """Yield the packets of some streams, and an empty one at the end of each."""
    # Where other streams appear further on in a file, PyAV looks for them at its end in vain.
    with suppress(IndexError):
        yield from container.demux(*streams)


def numbered_packets(
    container: av.container.InputContainer,
    stream: av.VideoStream | av.AudioStream,
    sought: int | None,
    video: av.VideoStream,
) -> Iterator[tuple[int, av.Packet]]:
    """Demux `stream`; yield its packets, the empty last one too, with their numbers.

    Args:
        sought: where to seek first, in ticks of `video`.
    """
    stream.codec_context.flags |= CodecFlags.copy_opaque
    if sought is not None:
        container.seek(sought, stream=video)
    number = 0
    for packet in demuxed(container, [stream]):
        packet.opaque = number
        yield number, packet
        number += bool(packet.size)


def packet_of(frame: av.VideoFrame | av.AudioFrame) -> int | None:
    """Return the number of the packet of a frame, or None if its decoder does not tell."""
    return frame.opaque if isinstance(frame.opaque, int) else None
