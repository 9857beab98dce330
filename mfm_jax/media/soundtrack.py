"""Read the sound of a video file, in step with its frames."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mfm_jax.errors import MediaError
from mfm_jax.media.audio import RATE
from mfm_jax.media.probe import opened, read_timeline, reading
from mfm_jax.typing import Float

AUDIO_GAP = 0.05
"""Seconds: larger jumps in an audio stream's timestamps are gaps, smaller ones are rounding."""


def read_audio(path: Path, rate: int = RATE) -> Float[np.ndarray, " A"] | None:
    """Return the sound of a video, as long as the video, or None if it has no audio stream.

    It is mono, the mean of the channels (so a sound that is the same in all keeps its level), with
    `rate` samples a second. Sample 0 sounds with the first frame: an audio stream
    that starts later is padded in front, one that starts earlier is cut.

    Raises:
        MediaError: as `probe`; also if the sound is damaged.
    """
    line = read_timeline(path)
    if not line.has_audio:
        return None
    with opened(path) as (container, _), reading(path):
        if container.streams.audio[0].codec_context is None:
            raise MediaError(f"{path} has an unknown audio codec: re-encode it as mp4")
        wave, source_rate = _mono(container, float(line.pts[0] * line.time_base), line.seconds)
        if source_rate != rate:
            wave = _resampled(wave, source_rate, rate)
    return fitted(wave, round(line.seconds * rate))


def _mono(container, start: float, seconds: float) -> tuple[Float[np.ndarray, " A"], int]:
    """Return `seconds` of the mean of the channels from `start` on, and the file's sample rate."""
    source_rate, wave, position = RATE, np.zeros(0, np.float32), None
    for frame in container.decode(container.streams.audio[0]):
        if position is None:  # the frame knows: HE-AAC plays at twice the rate that it declares
            source_rate = frame.sample_rate
            wave = np.zeros(round(seconds * source_rate), np.float32)
        at = position or 0 if frame.time is None else round((frame.time - start) * source_rate)
        if position is None or abs(at - position) > AUDIO_GAP * source_rate:
            position = at
        samples = _mean_of_channels(frame)
        begin, end = max(position, 0), min(position + len(samples), len(wave))
        if begin < end:
            wave[begin:end] = samples[begin - position : end - position]
        position += len(samples)
    return wave, source_rate


def _mean_of_channels(frame: av.AudioFrame) -> Float[np.ndarray, " A"]:
    """Return a mono frame; libswresample would make the same sound in two channels 3 dB louder."""
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
    resampler = av.AudioResampler("fltp", "mono", rate)
    frame = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = source_rate, 0, Fraction(1, source_rate)
    pieces = [*resampler.resample(frame), *resampler.resample(None)]
    return np.concatenate([piece.to_ndarray()[0] for piece in pieces])


def fitted(wave: Float[np.ndarray, " A"], samples: int) -> Float[np.ndarray, " {samples}"]:
    """Cut a wave to `samples`, or pad it with silence at the end."""
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))
