"""The sound of a video file, on the clock of its pictures."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from mfm_jax.errors import MediaError
from mfm_jax.media.audio import RATE
from mfm_jax.media.probe import opened, read_timeline, reading
from mfm_jax.typing import Float

AUDIO_GAP = 0.05
"""Seconds: larger jumps of an audio stream's clock are gaps, smaller ones are its rounding."""


def read_audio(path: Path, rate: int = RATE) -> Float[np.ndarray, " A"] | None:
    """The sound of a video on the video's clock, or None where it has no audio stream.

    Mono as the mean of the channels (so a sound that is the same in all keeps its level), `rate`
    samples a second, as long as the video. Sample 0 sounds with the first frame: an audio stream
    that starts later is padded in front, one that starts earlier is cut.

    Raises:
        MediaError: as `probe`, or the sound is damaged.
    """
    line = read_timeline(path)
    if not line.has_audio:
        return None
    with opened(path) as (container, _), reading(path):
        if container.streams.audio[0].codec_context is None:
            raise MediaError(f"{path} has an unknown audio codec: re-encode it as mp4")
        wave, own = _mono(container, float(line.pts[0] * line.time_base), line.seconds)
        if own != rate:
            wave = _resampled(wave, own, rate)
    return fitted(wave, round(line.seconds * rate))


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


def fitted(wave: Float[np.ndarray, " A"], samples: int) -> Float[np.ndarray, " {samples}"]:
    """Cut, or padded with silence at the end."""
    return np.pad(wave[:samples], (0, max(0, samples - len(wave))))
