"""Numbers for all clips: means and set scores, each with its interval, and paired comparisons.

The same clips are drawn for every system and every score, so that differences are paired.

A mean has the percentile interval of a bootstrap over clips. A score of a whole set has the value
plus and minus 1.96 standard deviations of the bootstrap: drawing clips repeatedly biases such
scores, so that the percentiles would not even contain the value.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mfm_jax.evaluation.catalogue import MEANS, Metric
from mfm_jax.typing import Float, Int

DRAWS = 2000  # of means
SET_DRAWS = ((128, 200), (512, 50), (math.inf, 20))
"""Most rows, or columns, of a set's matrices, and how often it is drawn: large ones take long."""
FLIPS = 10_000  # of signs, in the paired test of means
LEVEL = 0.05  # of tests

SetScore = Callable[[Int[np.ndarray, " B"]], float]
"""Returns the score of the clips of these numbers, of which some may occur several times."""


@dataclass(frozen=True)
class Figure:
    """A score over clips. `low` and `high` are None where there is no interval."""

    value: float | None  # None: undefined for all clips
    low: float | None = None
    high: float | None = None
    n: int = 0  # clips in it
    left_out: int = 0  # clips for which the score is undefined
    caution: str = ""  # why it cannot be relied on; empty if it can


@dataclass(frozen=True)
class Difference:
    """One system minus another, on the same clips."""

    value: float | None
    low: float | None
    high: float | None
    p: float | None  # two-sided
    n: int  # clips that both have
    verdict: str  # "better", "worse", "undecided", or "" where neither direction is better


def mean_figure(metric: Metric, values: Float[np.ndarray, " N"]) -> Figure:
    """Return the mean of the clips for which the score is defined, with its interval."""
    values = values[np.isfinite(values)] if (n := len(values)) else values
    out = n - len(values)
    if not len(values):
        return Figure(None, n=0, left_out=out, caution="undefined for every clip")
    low, high = _percentiles(_drawn_means(values)) if len(values) > 1 else (None, None)
    return Figure(float(values.mean()), low, high, len(values), out, _caution(metric, len(values)))


def set_figure(metric: Metric, score: SetScore, n: int, width: int) -> Figure:
    """Return the score of all clips, with its interval.

    Args:
        width: columns of the matrix that the score is computed from.
    """
    value, spread = _number(score(np.arange(n))), None
    if value is not None and n > 2:
        drawn = np.array([score(rows) for rows in _resampled_sets(n, width)])
        spread = 1.96 * float(drawn.std(ddof=1)) if np.isfinite(drawn).all() else None
    low, high = (
        (None, None) if value is None or spread is None else (value - spread, value + spread)
    )
    return Figure(value, low, high, n, 0, _caution(metric, n))


def mean_difference(
    metric: Metric, ours: Float[np.ndarray, " N"], theirs: Float[np.ndarray, " N"]
) -> Difference:
    """Return ours minus theirs over the clips that both have, with a sign-flip test.

    Under the hypothesis that the systems do not differ, every clip's difference may as well have
    the other sign; p is the share of flips with a mean at least as large.
    """
    gaps = (ours - theirs)[np.isfinite(ours - theirs)]
    if len(gaps) < 2:
        return Difference(float(gaps[0]) if len(gaps) else None, None, None, None, len(gaps), "")
    value = float(gaps.mean())
    low, high = _percentiles(_drawn_means(gaps))
    rng, extreme = np.random.default_rng(1), 0
    for block in np.array_split(np.empty(FLIPS), max(1, FLIPS * len(gaps) // 2_000_000)):
        signs = rng.integers(0, 2, (len(block), len(gaps)), dtype=np.int8) * 2.0 - 1.0
        extreme += int((np.abs(signs @ gaps) / len(gaps) >= abs(value) * (1 - 1e-9)).sum())
    p = (1 + extreme) / (1 + FLIPS)
    return Difference(value, low, high, p, len(gaps), _verdict(metric, value, p))


def set_difference(
    metric: Metric, ours: SetScore, theirs: SetScore, n: int, width: int
) -> Difference:
    """Return ours minus theirs on the same clips, tested against its bootstrap's deviation."""
    everything = np.arange(n)
    value = _number(ours(everything) - theirs(everything))
    if value is None or n < 3:
        return Difference(value, None, None, None, n, "")
    drawn = [ours(rows) - theirs(rows) for rows in _resampled_sets(n, width)]
    spread = float(np.std(drawn, ddof=1))
    if not math.isfinite(spread):
        return Difference(value, None, None, None, n, "")
    p = math.erfc(abs(value) / (spread * math.sqrt(2))) if spread else float(not value)
    low, high = value - 1.96 * spread, value + 1.96 * spread
    return Difference(value, low, high, p, n, _verdict(metric, value, p))


def ranks(
    metrics: Sequence[Metric], scores: Sequence[Mapping[str, float]]
) -> Float[np.ndarray, " N"]:
    """Return how good each clip is among all, from 0 (worst) to 1: the mean of its ranks.

    Over the main metrics that have a direction; clips without a score take no part in its ranks.
    """
    parts = []
    for metric in metrics:
        values = np.array([score.get(metric.key, math.nan) for score in scores])
        if not (metric.main and metric.better) or not np.isfinite(values).any():
            continue
        good = values if metric.better == "higher" else -values
        known = np.sort(good[np.isfinite(good)])
        # The mean of the first and the last place, where several share one.
        place = (np.searchsorted(known, good, "left") + np.searchsorted(known, good, "right")) / 2
        parts.append(np.where(np.isfinite(good), place / len(known), math.nan))
    if not parts:
        return np.full(len(scores), math.nan)
    stacked = np.stack(parts)
    known = np.isfinite(stacked)
    return np.where(known, stacked, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def _caution(metric: Metric, n: int) -> str:
    if n < 2:
        return "one clip: no interval"
    if n >= metric.clips:
        return ""
    if metric.per_clip and metric.clips == MEANS:
        return f"{n} clips: the interval is too narrow below {MEANS}"
    return f"{n} clips, of the {metric.clips} that this score needs"


def _drawn_means(values: Float[np.ndarray, " N"]) -> Float[np.ndarray, " R"]:
    rng = np.random.default_rng(0)
    return np.array(
        [values[rng.integers(0, len(values), len(values))].mean() for _ in range(DRAWS)]
    )


def _resampled_sets(n: int, width: int) -> list[Int[np.ndarray, " B"]]:
    draws = next(draws for most, draws in SET_DRAWS if min(n, width) <= most)
    rng = np.random.default_rng(0)
    return [rng.integers(0, n, n) for _ in range(draws)]


def _percentiles(drawn: Float[np.ndarray, " R"]) -> tuple[float, float]:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return float(low), float(high)


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _verdict(metric: Metric, value: float, p: float) -> str:
    if not metric.better:
        return ""
    if p >= LEVEL or not value:
        return "undecided"
    return "better" if (value > 0) == (metric.better == "higher") else "worse"
