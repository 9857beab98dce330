"""Read the sound of a video file, in step with its frames."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mfm_jax.errors import MediaError
from mfm_jax.media.audio import RATE
from mfm_jax.media.containers import opened, reading
from mfm_jax.media.packets import numbered_packets, packet_of
from mfm_jax.media.sandbox import sandboxed
from mfm_jax.media.timeline import Timeline, read_timeline
from mfm_jax.typing import Float

AUDIO_GAP = 0.02
"""Seconds: larger jumps in an audio stream's timestamps are gaps, smaller ones are rounding."""

RUN_IN = 0.5
"""Seconds that are decoded before a later start: codecs need the packets before."""

PLANES = 8
"""Planes of a frame that PyAV can read; it would crash at one more."""


@sandboxed
def read_audio(
    path: Path, rate: int = RATE, start: float = 0.0, seconds: float | None = None
) -> Float[np.ndarray, " A"] | None:
    """Return the sound of a video, or None if it has no audio stream.

    It is mono, the mean of the channels (so a sound that is the same in all keeps its level), with
    `rate` samples a second. Sample 0 sounds `start` seconds after the first frame appears: an
    audio stream that starts later is padded in front, one that starts earlier is cut.

    Args:
        seconds: the length wanted, less where the video ends before; all of it if None.

    Raises:
        MediaError: as `probe`; also if the sound is damaged.
    """
    stop = np.inf if seconds is None else start + seconds
    line = read_timeline(path, start, stop)
    if line.audio is None:
        return None
    length = max(0.0, min(line.seconds, stop) - start)
    with opened(path) as (container, video), reading(path):
        sound = container.streams[line.audio]
        assert isinstance(sound, av.AudioStream), "the timeline says so"
        if sound.codec_context is None:
            raise MediaError(f"{path} has an unknown audio codec: re-encode it as mp4")
        frames = _frames(container, video, sound, line, start)
        wave, source_rate = _mono(frames, start, length)
        if source_rate != rate:
            wave = _resampled(wave, source_rate, rate)
    return fitted(wave, round(length * rate))


def _frames(
    container, video: av.VideoStream, sound: av.AudioStream, line: Timeline, start: float
) -> Iterator[tuple[float | None, float, av.AudioFrame]]:
    """Decode from shortly before `start` on; yield when each frame sounds, its shift, and itself.

    Times are seconds since the first frame of the video, None where the file does not tell. The
    shift is what makes them continuous.
    """
    for number, packet in _packets(container, video, sound, line, start):
        at = packet.pts
        if packet.size and at is not None:
            time = float(at * packet.time_base) + _shift(line, number) - line.begin
            if time < start - RUN_IN:
                continue
        for frame in sound.decode(packet):
            source = packet_of(frame)
            shift = _shift(line, number if source is None else source)
            yield None if frame.time is None else frame.time + shift - line.begin, shift, frame


def _packets(
    container, video: av.VideoStream, sound: av.AudioStream, line: Timeline, start: float
) -> Iterator[tuple[int, av.Packet]]:
    """Demux the sound, from shortly before a later start on if the timeline was sought."""
    if line.sought is None:
        yield from numbered_packets(container, sound, None, video)
        return
    ahead = RUN_IN
    while True:
        # Matroska is entered at a picture. Where the file has the sound far before the picture,
        # what is wanted lies before the place found.
        target = max(line.origin, line.sought - int(ahead / line.time_base))
        packets = numbered_packets(container, sound, target, video)
        number, head = next(packets)
        begins = np.inf if head.pts is None else float(head.pts * head.time_base) - line.begin
        if begins <= start or target == line.origin:
            yield number, head
            yield from packets
            return
        ahead *= 4


def _shift(line: Timeline, packet: int) -> float:
    """Return the seconds that make the time of an audio packet continuous."""
    if line.sought is not None or not len(line.audio_shift):
        return 0.0
    return float(line.audio_shift[min(packet, len(line.audio_shift) - 1)])


def _mono(
    frames: Iterator[tuple[float | None, float, av.AudioFrame]], start: float, seconds: float
) -> tuple[Float[np.ndarray, " A"], int]:
    """Return `seconds` of the mean of the channels from `start` on, and the file's sample rate."""
    source_rate, wave, position, joined = RATE, np.zeros(0, np.float32), None, 0.0
    convert: _Resampler | None = None
    for time, shift, frame in frames:
        if position is None:  # the frame knows: HE-AAC plays at twice the rate that it declares
            source_rate = frame.sample_rate
            wave = np.zeros(round(seconds * source_rate), np.float32)
        at = position or 0 if time is None else round((time - start) * source_rate)
        if position is None or shift != joined or abs(at - position) > AUDIO_GAP * source_rate:
            position, joined, convert = at, shift, None
        if position > len(wave) + RUN_IN * source_rate:
            break
        samples = _mean_of_channels(frame)
        if frame.sample_rate != source_rate:  # recordings that were joined may differ
            if convert is None or convert.source_rate != frame.sample_rate:
                convert = _Resampler(frame.sample_rate, source_rate)
            samples = convert(samples)
        begin, end = max(position, 0), min(position + len(samples), len(wave))
        if begin < end:
            wave[begin:end] = samples[begin - position : end - position]
        position += len(samples)
    return wave, source_rate


def _mean_of_channels(frame: av.AudioFrame) -> Float[np.ndarray, " samples"]:
    """Return a mono frame; libswresample would make the same sound in two channels 3 dB louder."""
    if frame.format.is_planar and frame.layout.nb_channels > PLANES:
        (frame,) = av.AudioResampler(frame.format.packed, frame.layout).resample(frame)
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    if samples.dtype.kind in "iu":
        full = 2.0 ** (8 * samples.dtype.itemsize - 1)
        samples = samples / full - (samples.dtype.kind == "u")
    return samples.mean(axis=0)


def _resampled(
    wave: Float[np.ndarray, " samples"], source_rate: int, rate: int
) -> Float[np.ndarray, " A"]:
    convert = _Resampler(source_rate, rate)
    return np.concatenate([convert(wave), convert(None)])


class _Resampler:
    """Brings a mono wave to another rate, piece by piece; what is not ready yet comes later."""

    def __init__(self, source_rate: int, rate: int) -> None:
        self.source_rate = source_rate
        self._resampler = av.AudioResampler("fltp", "mono", rate)
        self._sent = 0

    def __call__(self, samples: Float[np.ndarray, " samples"] | None) -> Float[np.ndarray, " A"]:
        """Return what is ready after `samples`; the rest of it after None, which ends the wave."""
        frame = None
        if samples is not None:
            piece = samples.astype(np.float32, copy=False)[None]
            frame = av.AudioFrame.from_ndarray(piece, "fltp", "mono")
            frame.sample_rate, frame.pts = self.source_rate, self._sent
            frame.time_base = Fraction(1, self.source_rate)
            self._sent += len(samples)
        ready = [piece.to_ndarray()[0] for piece in self._resampler.resample(frame)]
        return np.concatenate([np.zeros(0, np.float32), *ready])


def fitted(wave: Float[np.ndarray, " A"], samples: int) -> Float[np.ndarray, " {samples}"]:
    """Cut a wave to `samples`, or pad it with silence at the end."""
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))
