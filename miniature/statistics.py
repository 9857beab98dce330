"""Means, confidence intervals and verdicts, computed from counts by clip.

Every score is a ratio of sums over clips: an F1 is twice the hits over the sum of found and true
contacts, and a mean is a sum over the number of clips. The score of any subset or reweighting of
the clips can therefore be computed from the counts alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mfm_jax.typing import Float, Int

DRAWS = 10_000
GROUP = 64  # clips among which retrieval looks for one


@dataclass(frozen=True)
class Ratio:
    """Numerator and denominator of a score, by training seed and by clip."""

    numerator: Float[np.ndarray, "S N"]
    denominator: Float[np.ndarray, "S N"]

    @property
    def values(self) -> Float[np.ndarray, " S"]:
        """The score of each seed over all clips."""
        return _divided(self.numerator.sum(axis=1), self.denominator.sum(axis=1))

    def resampled(
        self, clips: Float[np.ndarray, "R N"], seeds: Float[np.ndarray, "R S"]
    ) -> Float[np.ndarray, " R"]:
        """Return the mean score over seeds for each row of clip weights and seed weights."""
        values = _divided(clips @ self.numerator.T, clips @ self.denominator.T)
        return (seeds * values).sum(axis=1)


@dataclass(frozen=True)
class Difference:
    """A mean difference between two systems and its 95 % interval."""

    value: float
    low: float
    high: float

    def verdict(self, *, higher: bool) -> str:
        """Return the verdict on the claim that the first system is better.

        Args:
            higher: the higher score is the better one.
        """
        if self.low <= 0 <= self.high:
            return "undecided"
        return "holds" if (self.low > 0) == higher else "fails"


def difference(ours: Ratio, theirs: Ratio, *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Return ours minus theirs, with the interval of a paired bootstrap over clips and seeds.

    Each draw resamples the clips with replacement, the same ones for both systems and for all
    seeds. It also resamples pairs of seeds, one fewer than there are. The interval goes from the
    2.5th to the 97.5th percentile. If seeds differ more than clips do, five seeds make it somewhat
    too narrow.

    Raises:
        ValueError: the two were not scored on the same number of clips and seeds.
    """
    if ours.numerator.shape != theirs.numerator.shape:
        raise ValueError(
            f"{ours.numerator.shape} and {theirs.numerator.shape} (seeds, clips) are not paired: "
            "score both on the same clips and seeds"
        )
    clips, seeds = _weights(*ours.numerator.shape, draws, seed)
    gaps = ours.resampled(clips, seeds) - theirs.resampled(clips, seeds)
    low, high = np.percentile(gaps, (2.5, 97.5))
    return Difference(float((ours.values - theirs.values).mean()), float(low), float(high))


@lru_cache(maxsize=8)
def _weights(
    seeds: int, clips: int, draws: int, seed: int
) -> tuple[Float[np.ndarray, "R N"], Float[np.ndarray, "R S"]]:
    """Return the weights of clips and of seeds in each draw of the bootstrap."""
    # Drawing as many seeds as there are would make the variance of their mean 1 / seeds too small.
    rng, few = np.random.default_rng(seed), max(seeds - 1, 1)
    taken = rng.multinomial(clips, np.full(clips, 1 / clips), size=draws)
    shares = rng.multinomial(few, np.full(seeds, 1 / seeds), size=draws)
    return taken.astype(np.float64), shares / few


def _divided(
    numerator: Float[np.ndarray, "..."], denominator: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """Return the quotient, or 0 where the denominator is 0, as in `Counts.f1`."""
    zeros = np.zeros_like(numerator)
    return np.divide(numerator, denominator, out=zeros, where=denominator > 0)


def recall_at_1(
    predicted: Float[np.ndarray, "N K D"], true: Float[np.ndarray, "N K D"], group: int = GROUP
) -> Int[np.ndarray, " M"]:
    """Return recall at 1 by clip: 1 if its predicted LOA is nearest to its own true LOA, else 0.

    Clips are compared within consecutive groups of `group` clips. The last clips are left out if
    they do not fill a group, so M <= N. The nearest LOA has the largest cosine. Both LOA must be
    standardised with the mean and standard deviation of the training clips.
    """
    group = min(group, len(predicted))
    whole = len(predicted) // group * group
    sides = [x[:whole].reshape(-1, group, x[0].size).astype(np.float64) for x in (predicted, true)]
    sides = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in sides]
    cosines = np.einsum("gnd,gmd->gnm", *sides)
    return (cosines.argmax(axis=-1) == np.arange(group)).astype(int).reshape(-1)


def reaches(value: float, target: float, *, higher: bool) -> bool:
    """Return True if `value` is at least as good as `target`."""
    return value >= target if higher else value <= target


def smallest_share(values: Mapping[float, float], target: float, *, higher: bool) -> float | None:
    """Return the smallest share whose value is at least as good as `target`, or None."""
    good = [share for share, value in values.items() if reaches(value, target, higher=higher)]
    return min(good, default=None)
