"""Compare a generated clip with its real counterpart, spectrogram against spectrogram.

All scores here ask for the same sound at the same moment. A good generation of another footstep
scores badly, so they suit reconstruction (VAE, vocoder) better than generation.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from mfm_jax.metrics.spectra import lsd_spectrum, magnitude
from mfm_jax.typing import Float

RESOLUTIONS = ((512, 50), (1024, 120), (2048, 240))
"""Window and hop in samples of the spectrograms of `multi_resolution_stft`."""
PUBLISHED_CUT = 1120  # samples that audioldm_eval drops from the start of generated clips only


def psnr(
    reference: Float[np.ndarray, "M reference"], generated: Float[np.ndarray, "M generated"]
) -> float:
    """Return the peak signal-to-noise ratio in dB of two `spectra.unit_mel`, cut to the shorter.

    audioldm_eval eval.py:182-197. It is infinite for equal pictures: the original then leaves the
    pair out of the mean, and out of the mean of SSIM as well.
    """
    reference, generated = _cut(reference, generated)
    error = np.mean((reference - generated) ** 2)
    return float(-10.0 * np.log10(error)) if error else float("inf")


def ssim(
    reference: Float[np.ndarray, "M reference"], generated: Float[np.ndarray, "M generated"]
) -> float:
    """Return the structural similarity of two pictures in uniform windows of 7 x 7.

    audioldm_eval eval.py:195-196 through scikit-image: sample covariance, K1 .01, K2 .03, windows
    that overlap the border left out. The data range is that of the pair (joint maximum - minimum),
    so the constants, and the score of quiet areas, change from pair to pair.

    Raises:
        ValueError: a picture under 7 x 7.
    """
    x, y = _cut(reference.astype(np.float64), generated.astype(np.float64))
    if min(x.shape) < 7:
        raise ValueError(f"SSIM needs pictures of at least 7 x 7, got {x.shape}")
    span = max(x.max(), y.max()) - min(x.min(), y.min())
    if not span:
        return 1.0  # both are the same constant
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    mx, my = _mean7(x), _mean7(y)
    sample = 49 / 48
    vx, vy = sample * (_mean7(x * x) - mx * mx), sample * (_mean7(y * y) - my * my)
    vxy = sample * (_mean7(x * y) - mx * my)
    likeness = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return float(likeness.mean())


def log_spectral_distance(
    reference: Float[np.ndarray, " reference"],
    generated: Float[np.ndarray, " generated"],
    *,
    cut: int = 0,
    floor: float = 0.0,
) -> float:
    """Return the LSD of two waves at 16 kHz in decades of power, after `_pair`; 0 is best.

    audioldm_eval eval.py:145-180 with ssr_eval 0.0.7. `cut` drops that many samples from the start
    of the generated wave only: with `PUBLISHED_CUT` it is the published number, in which even an
    identical pair is about 1. nan when a clip is constant (digital silence), where the original
    stops: leave such pairs out and say how many they are.

    Frames that are exactly zero count 12 or more in the published score, even in an identical pair
    (`lsd_of_spectra`). With a `floor`, smaller magnitudes count as the floor, and an identical pair
    scores 0; a sine at full scale has a magnitude of about 186.
    """
    pair = _pair(reference, generated, cut)
    if pair is None:
        return float("nan")
    return lsd_of_spectra(*(np.maximum(lsd_spectrum(wave), floor) for wave in pair))


def lsd_of_spectra(
    reference: Float[np.ndarray, "T bins"], generated: Float[np.ndarray, "T bins"]
) -> float:
    """Return the LSD of two magnitude spectrograms (ssr_eval 0.0.7 metrics.py:109-112).

    It is not symmetric where a bin is exactly zero: 12 if that is the reference's, 24 if the
    generated clip's.
    """
    ratio = reference**2 / (generated + 1e-12) ** 2
    return float(np.sqrt((np.log10(ratio + 1e-12) ** 2).mean(axis=1)).mean())


def ssim_of_waves(
    reference: Float[np.ndarray, " reference"],
    generated: Float[np.ndarray, " generated"],
    *,
    cut: int = 0,
) -> float:
    """Return the SSIM of the linear spectrograms that LSD compares; nan as there.

    ssr_eval 0.0.7 metrics.py:123-133. The loudest bins set the data range, so quiet ones hardly
    count.
    """
    pair = _pair(reference, generated, cut)
    return float("nan") if pair is None else ssim(*(lsd_spectrum(w).T for w in pair))


def multi_resolution_stft(
    reference: Float[np.ndarray, " reference"], generated: Float[np.ndarray, " generated"]
) -> float:
    """Return the multi-resolution STFT distance of two waves at 16 kHz, cut to the shorter.

    The mean over `RESOLUTIONS` of spectral convergence and of the mean difference of logarithmic
    magnitudes in nats, with magnitudes of at least 1e-7 (Parallel WaveGAN, arXiv 1910.11480,
    equations 6-8). nan if the reference is digital silence. Levels are compared as they are.
    """
    size = min(len(reference), len(generated))
    if not np.any(reference[:size]):
        return float("nan")
    found = []
    for window, hop in RESOLUTIONS:
        x, y = (
            np.maximum(magnitude(wave[:size], n_fft=window, hop=hop, pad="constant"), 1e-7)
            for wave in (reference, generated)
        )
        convergence = np.sqrt(((x - y) ** 2).sum() / (x**2).sum())
        found.append(convergence + np.abs(np.log(x) - np.log(y)).mean())
    return float(np.mean(found))


def _pair(
    reference: Float[np.ndarray, " reference"], generated: Float[np.ndarray, " generated"], cut: int
) -> tuple[Float[np.ndarray, " shorter"], Float[np.ndarray, " shorter"]] | None:
    """Return both waves without mean, at peak 1, cut to the shorter; None if one is constant."""
    scaled = []
    for wave in (reference, generated[cut:]):
        wave = wave - wave.mean()
        peak = np.abs(wave).max()
        if not peak:
            return None
        scaled.append(wave / peak)
    size = min(map(len, scaled))
    return scaled[0][:size], scaled[1][:size]


def _cut(
    x: Float[np.ndarray, "M reference"], y: Float[np.ndarray, "M generated"]
) -> tuple[Float[np.ndarray, "M shorter"], Float[np.ndarray, "M shorter"]]:
    size = min(x.shape[1], y.shape[1])
    return x[:, :size], y[:, :size]


def _mean7(picture: Float[np.ndarray, "M T"]) -> Float[np.ndarray, "rows columns"]:
    return sliding_window_view(picture, (7, 7)).mean(axis=(-2, -1))
