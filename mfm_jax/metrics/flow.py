"""Optical flow by Farneback's method, as OpenCV computes it, for AV-Align.

Both frames are approximated around every pixel by a quadratic polynomial; the displacement follows
from the difference of their linear terms (Farneback, SCIA 2003). It is refined from coarse to fine.
OpenCV is not needed: the sizes below are the arguments that TempoTokens gives it
(av_align.py:126-132), the rest follows `modules/video/src/optflowgf.cpp`.
"""

from collections.abc import Iterable, Iterator
from itertools import pairwise

import numpy as np

from mfm_jax.typing import Float, UInt8

LEVELS = 3  # halvings of the size, as long as a side keeps at least `SMALLEST` pixels
SMALLEST = 32
WINDOW = 15  # pixels; the displacement is constant in a square of this side
ITERATIONS = 3  # at each size
REACH, SIGMA = 5, 1.2  # pixels to either side, and the deviation, of the polynomial's weights
BORDER = np.array([0.14, 0.14, 0.4472, 0.4472, 0.4472], np.float32)
"""Weights of the outermost pixels, where the polynomials know little."""

Picture = Float[np.ndarray, "H W"]
Pyramid = list[np.ndarray]
"""The coefficients `[H, W, 5]` of the polynomials at each size, the smallest first."""


def mean_flow(frames: Iterable[UInt8[np.ndarray, "H W"]]) -> Float[np.ndarray, " T"]:
    """Return the mean length of the flow in pixels between neighbouring grey frames."""
    lengths = []
    for before, after in pairwise(map(_pyramid, frames)):
        flow = _flow(before, after)
        lengths.append(float(np.hypot(flow[..., 0], flow[..., 1]).mean()))
    return np.array(lengths)


def grey(frame: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H W"]:
    """Return the luma of an RGB frame (BT.601), rounded, as OpenCV does."""
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return np.round(frame.astype(np.float32) @ weights).astype(np.uint8)


def _pyramid(frame: UInt8[np.ndarray, "H W"]) -> Pyramid:
    image = frame.astype(np.float32)
    levels, scale = 0, 0.5
    while levels < LEVELS and min(image.shape) * scale >= SMALLEST:
        levels, scale = levels + 1, scale / 2
    return [_polynomials(_at_scale(image, 0.5**k)) for k in range(levels, -1, -1)]


def _at_scale(image: Picture, scale: float | int) -> Float[np.ndarray, "H2 W2"]:
    from scipy.ndimage import correlate1d

    sigma = (1 / scale - 1) / 2
    size = max(int(np.rint(5 * sigma)) | 1, 3)
    if sigma:
        kernel = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    else:
        kernel = np.array([1.0, 2.0, 1.0])
    kernel = kernel / kernel.sum()
    for axis in (0, 1):
        image = correlate1d(image, kernel, axis=axis, mode="mirror")
    height, width = (int(np.rint(side * scale)) for side in image.shape)
    return _resized(image, (height, width))


def _resized(
    image: Float[np.ndarray, "H W ..."], shape: tuple[int, int]
) -> Float[np.ndarray, "H2 W2 ..."]:
    """Interpolate between the nearest pixels, whose centres lie at halves."""
    for axis, size in enumerate(shape):
        have = image.shape[axis]
        if have == size:
            continue
        at = np.clip((np.arange(size) + 0.5) * have / size - 0.5, 0, have - 1)
        low = np.minimum(at.astype(int), have - 1)
        part = (at - low).astype(np.float32).reshape(-1, *[1] * (image.ndim - 1 - axis))
        high = np.minimum(low + 1, have - 1)
        image = np.take(image, low, axis) * (1 - part) + np.take(image, high, axis) * part
    return image


def _polynomials(image: Picture) -> Float[np.ndarray, "H W 5"]:
    """Return the coefficients of y, x, y², x² and xy of the polynomial around every pixel."""
    from scipy.ndimage import correlate1d

    x = np.arange(-REACH, REACH + 1, dtype=np.float64)
    g = np.exp(-(x**2) / (2 * SIGMA**2))
    g /= g.sum()
    second, fourth = (g * x**2).sum(), (g * x**4).sum()
    # The inverse of the moments of 1, x², y² couples x² and y² with 1, but not with each other.
    own = 1 / (fourth - second**2)

    def along(values, weights, axis):
        return correlate1d(values, weights.astype(np.float32), axis=axis, mode="nearest")

    rows = [along(image, g * x**power, 0) for power in range(3)]
    mean = second * along(rows[0], g, 1)
    return np.stack(
        [
            along(rows[1], g, 1) / second,
            along(rows[0], g * x, 1) / second,
            own * (along(rows[2], g, 1) - mean),
            own * (along(rows[0], g * x**2, 1) - mean),
            along(rows[1], g * x, 1) / second**2,
        ],
        axis=-1,
    ).astype(np.float32)


def _flow(before: Pyramid, after: Pyramid) -> Float[np.ndarray, "H W 2"]:
    """Return the displacement (x, y) of every pixel."""
    from scipy.ndimage import uniform_filter1d

    flow = np.zeros((*before[0].shape[:2], 2), np.float32)
    for first, second in zip(before, after, strict=True):
        if flow.shape[:2] != first.shape[:2]:
            flow = 2 * _resized(flow, (first.shape[0], first.shape[1]))
        for _ in range(ITERATIONS):
            terms = np.stack(list(_equations(first, second, flow)), axis=-1)
            for axis in (0, 1):
                terms = uniform_filter1d(terms, WINDOW, axis=axis, mode="nearest")
            g11, g12, g22, h1, h2 = np.moveaxis(terms, -1, 0)
            scale = 1 / (g11 * g22 - g12 * g12 + 1e-3)
            flow = np.stack([(g11 * h2 - g12 * h1) * scale, (g22 * h1 - g12 * h2) * scale], axis=-1)
    return flow


def _equations(
    first: Float[np.ndarray, "H W 5"], second: Float[np.ndarray, "H W 5"], flow: np.ndarray
) -> Iterator[Picture]:
    """Yield the five terms of the normal equations of every pixel."""
    height, width = flow.shape[:2]
    y, x = np.mgrid[:height, :width].astype(np.float32)
    there, inside = _displaced(second, x + flow[..., 0], y + flow[..., 1])
    linear = (first[..., :2] - there[..., :2]) / 2
    r4, r5 = (np.where(inside, (first[..., i] + there[..., i]) / 2, first[..., i]) for i in (2, 3))
    r6 = np.where(inside, (first[..., 4] + there[..., 4]) / 4, first[..., 4] / 2)
    r2 = linear[..., 0] + r4 * flow[..., 1] + r6 * flow[..., 0]
    r3 = linear[..., 1] + r6 * flow[..., 1] + r5 * flow[..., 0]
    weight = _border(height)[:, None] * _border(width)[None, :]
    r2, r3, r4, r5, r6 = (r * weight for r in (r2, r3, r4, r5, r6))
    yield r4 * r4 + r6 * r6
    yield (r4 + r5) * r6
    yield r5 * r5 + r6 * r6
    yield r4 * r2 + r6 * r3
    yield r6 * r2 + r5 * r3


def _displaced(
    values: Float[np.ndarray, "H W 5"], x: Picture, y: Picture
) -> tuple[Float[np.ndarray, "H W 5"], np.ndarray]:
    """Return the values at displaced pixels, 0 outside of the frame, and which are inside."""
    height, width = values.shape[:2]
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    inside = (left >= 0) & (top >= 0) & (left < width - 1) & (top < height - 1)
    fx, fy = (x - left)[..., None], (y - top)[..., None]
    left, top = np.where(inside, left, 0), np.where(inside, top, 0)
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    found = (1 - fy) * ((1 - fx) * values[top, left] + fx * values[top, right]) + fy * (
        (1 - fx) * values[bottom, left] + fx * values[bottom, right]
    )
    return np.where(inside[..., None], found, 0).astype(np.float32), inside


def _border(size: int) -> Float[np.ndarray, " {size}"]:
    weights = np.ones(size, np.float32)
    reach = min(len(BORDER), size)
    weights[:reach] *= BORDER[:reach]
    weights[size - reach :] *= BORDER[:reach][::-1]
    return weights
