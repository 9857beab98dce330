"""Compare how loud two sounds are over time, and find silence and clipping."""

import numpy as np

from mfm_jax.typing import Float

FRAME = 0.01  # s of the envelope
FARTHEST = 0.5  # s; no lag beyond it is looked for
FULL_SCALE = 0.999  # three samples in a row from here on are clipped; one may be a peak that fits
SILENT = -60.0  # dBFS RMS; quieter clips count as silent


def envelope(wave: Float[np.ndarray, " A"], rate: int) -> Float[np.ndarray, " T"]:
    """Return the RMS level in frames of 10 ms; the rest at the end is dropped."""
    size = round(FRAME * rate)
    frames = wave[: len(wave) // size * size].reshape(-1, size).astype(np.float64)
    return np.sqrt((frames**2).mean(axis=1))


def envelope_agreement(
    reference: Float[np.ndarray, " T"], generated: Float[np.ndarray, " T2"]
) -> tuple[float, float]:
    """Return the correlation of two envelopes, and the lag in seconds that would make it highest.

    The lag is positive where the generated sound is late, and at most `FARTHEST`; of equal ones it
    is the shortest. Both are nan if an envelope is constant, as in silence.
    """
    size = min(len(reference), len(generated))
    x, y = (a[:size] - a[:size].mean() if size else a[:0] for a in (reference, generated))
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    if not norm > 1e-12:
        return float("nan"), float("nan")
    farthest = min(round(FARTHEST / FRAME), size - 1)
    lags = np.array(sorted(range(-farthest, farthest + 1), key=abs))
    products = [
        float(x[max(0, -k) : size - max(0, k)] @ y[max(0, k) : size + min(0, k)]) for k in lags
    ]
    best = int(np.argmax(np.round(np.array(products) / norm, 9)))
    return products[0] / norm, float(lags[best]) * FRAME


def is_clipped(wave: Float[np.ndarray, " A"]) -> bool:
    """Return whether at least three samples in a row are at full scale."""
    full = np.abs(wave) >= FULL_SCALE
    return bool((full[2:] & full[1:-1] & full[:-2]).any())
