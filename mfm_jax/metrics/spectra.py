"""Compute the spectra of the published scores, each exactly as its source does.

None replaces another, nor the mels in `mfm_jax.media.audio`: a network reads what it was trained
on, and a score is only comparable on its own spectrogram. Everything computes in float64.

Waves are mono floats in [-1, 1] at 16 kHz.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mfm_jax.media.audio import RATE, mel_filters
from mfm_jax.typing import Float

CNN14_SHORTEST = 2 * RATE  # samples; audioldm_eval pads shorter clips, datasets/load_mel.py:139


def hann(size: int) -> Float[np.ndarray, " {size}"]:
    """Return the periodic Hann window, which all sources use."""
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


def magnitude(
    wave: Float[np.ndarray, " A"], *, n_fft: int, hop: int, pad: str
) -> Float[np.ndarray, "T bins"]:
    """Return the magnitudes of a centred STFT; `pad` is numpy's padding mode.

    Raises:
        ValueError: the wave is empty, or too short to be reflected.
    """
    if not len(wave) or (pad == "reflect" and len(wave) <= n_fft // 2):
        raise ValueError(f"{len(wave)} samples are too few for a spectrogram of window {n_fft}")
    padded = np.pad(wave.astype(np.float64), n_fft // 2, mode=pad)  # type: ignore[call-overload]
    frames = sliding_window_view(padded, n_fft)[::hop]
    return np.abs(np.fft.rfft(frames * hann(n_fft)))


def prepare_for_cnn14(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, " samples"]:
    """Remove the mean and pad with zeros to two seconds, as before Cnn14.

    audioldm_eval datasets/load_mel.py:139-175, which removes the mean before it resamples.
    av-benchmark removes the mean as well and never pads (av_bench/data/audio_dataset.py:124-141).
    """
    centred = wave - wave.mean()
    return np.pad(centred, (0, max(0, CNN14_SHORTEST - len(wave))))


def cnn14_log_mel(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, "T 64"]:
    """Return log-mel power in dB, at least -100: the input of Cnn14 (PANNs) before its BatchNorm.

    audioldm_eval feature_extractors/panns/models.py:168-318 through torchlibrosa 0.1.0. There
    is no floor relative to the maximum, unlike in `onsets`.
    """
    power = magnitude(wave, n_fft=512, hop=160, pad="reflect") ** 2
    filters = mel_filters(mels=64, n_fft=512, fmin=50, fmax=8000)
    return 10.0 * np.log10(np.maximum(power @ filters.T, 1e-10))


def unit_mel(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, "64 T"]:
    """Return log-mel magnitudes, -80 to 20 dB mapped to [0, 1]: what PSNR and SSIM compare.

    audioldm_eval datasets/load_mel.py:76-83, 104-123 and audio/stft.py:145-176. Clipped at both
    ends, so what is louder than 20 dB or quieter than -80 dB is not compared.
    """
    mag = magnitude(wave, n_fft=512, hop=160, pad="reflect")
    filters = mel_filters(mels=64, n_fft=512, fmin=50, fmax=8000)
    decibels = 20.0 * np.log10(np.maximum(mag @ filters.T, 1e-5)) - 20.0
    return np.clip((decibels + 100.0) / 100.0, 0.0, 1.0).T


def lsd_spectrum(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, "T 372"]:
    """Return linear magnitudes for the log-spectral distance (ssr_eval 0.0.7 metrics.py:16-30).

    The window is its 2048 samples at 44.1 kHz scaled to 16 kHz.
    """
    return magnitude(wave, n_fft=2048 * RATE // 44_100, hop=160, pad="constant")


def vggish_examples(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, "B 96 64"]:
    """Return log-mel examples of 0.96 s for VGGish; none for clips under 0.975 s.

    av-benchmark av_bench/vggish/mel_features.py:105-285. Frames are not centred, examples do not
    overlap, and the rest of the clip is dropped.
    """
    window, hop, length = 400, 160, 96
    if len(wave) < window:
        return np.zeros((0, length, 64))
    frames = sliding_window_view(wave.astype(np.float64), window)[::hop] * hann(window)
    log_mel = np.log(np.abs(np.fft.rfft(frames, 512)) @ _htk_filters() + 0.01)
    used = len(log_mel) // length * length
    return log_mel[:used].reshape(-1, length, 64)


def _htk_filters() -> Float[np.ndarray, "257 64"]:
    """Return VGGish's mel filters: triangles straight on the mel axis, without the constant bin."""
    mel = 1127.0 * np.log1p(np.linspace(0.0, RATE / 2, 257) / 700.0)
    edges = 1127.0 * np.linspace(np.log1p(125.0 / 700.0), np.log1p(7500.0 / 700.0), 66)
    rising = (mel[:, None] - edges[None, :-2]) / (edges[1:-1] - edges[:-2])[None, :]
    falling = (edges[None, 2:] - mel[:, None]) / (edges[2:] - edges[1:-1])[None, :]
    filters = np.maximum(0.0, np.minimum(rising, falling))
    filters[0] = 0.0
    return filters
