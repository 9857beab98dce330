"""Encode frames and sound, and mux the packets of several streams."""

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction

import av
import numpy as np

from mfm_jax.media.formats import Format
from mfm_jax.typing import Float

AAC_BIT_RATE = 96_000
"""Bits per second: the most that AAC allows one channel at 16 kHz."""

OPUS_RATES = (8_000, 12_000, 16_000, 24_000, 48_000)
"""Samples per second that Opus knows."""

CRF = 18
"""x264's quality, 0 (lossless) to 51."""


def mux(out: av.container.OutputContainer, streams: Sequence[Iterator[av.Packet]]) -> None:
    """Write the packets of several streams in the order in which they are decoded."""

    def seconds(packet):
        return packet.dts * packet.time_base

    for packet in heapq.merge(*streams, key=seconds):
        out.mux(packet)


def picture_track(
    out: av.container.OutputContainer,
    form: Format,
    size: tuple[int, int],
    rate: Fraction,
    crf: int = CRF,
) -> av.VideoStream:
    """Add a video stream of `size` (width and height); equal frames give equal bytes."""
    if form.picture == "libx264":
        # One thread, and no macroblock tree: with it the same input gives several different files.
        options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
    else:
        options = {"crf": str(crf + 10), "b": "0", "deadline": "realtime", "cpu-used": "6"}
    track = out.add_stream(form.picture, rate=rate, options=options)
    assert isinstance(track, av.VideoStream)
    track.width, track.height = size
    track.pix_fmt = "yuv420p"
    track.codec_context.thread_count = 1
    return track


def picture_packets(
    track: av.VideoStream,
    frames: Iterable[tuple[int, av.VideoFrame]],
    base: Fraction,
    ends: Mapping[int, int] | None = None,
) -> Iterator[av.Packet]:
    """Encode frames, each given with the tick of `base` (s) at which it appears.

    Args:
        ends: when the frame of each tick ends, where the rate varies.
    """
    track.codec_context.time_base = base
    for tick, frame in frames:
        frame.pts, frame.time_base, frame.pict_type = tick, base, 0
        yield from _with_duration(track.encode(frame), ends)
    yield from _with_duration(track.encode(), ends)


def _with_duration(
    packets: Iterable[av.Packet], ends: Mapping[int, int] | None
) -> Iterator[av.Packet]:
    for packet in packets:
        if ends is not None and packet.pts is not None:
            packet.duration = ends[packet.pts] - packet.pts
        yield packet


def sound_track(out: av.container.OutputContainer, form: Format, rate: int) -> av.AudioStream:
    """Add a mono audio stream for samples of `rate` a second."""
    if form.sound == "libopus" and rate not in OPUS_RATES:
        rate = OPUS_RATES[-1]
    track = out.add_stream(form.sound, rate=rate)
    assert isinstance(track, av.AudioStream)
    track.bit_rate = AAC_BIT_RATE
    track.layout = "mono"
    track.codec_context.open()
    return track


def sound_packets(
    track: av.AudioStream, wave: Float[np.ndarray, " A"], rate: int
) -> Iterator[av.Packet]:
    """Yield the packets of `wave`, which starts at time 0; the encoder's delay lies before that."""
    context = track.codec_context
    resampler = av.AudioResampler(
        context.format, context.layout, context.rate, frame_size=context.frame_size
    )
    samples = np.clip(wave, -1, 1).astype(np.float32)
    for at in range(0, len(samples), rate):
        frame = av.AudioFrame.from_ndarray(samples[None, at : at + rate], "fltp", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
        for piece in resampler.resample(frame):
            yield from track.encode(piece)
    for piece in resampler.resample(None):
        yield from track.encode(piece)
    yield from track.encode()
