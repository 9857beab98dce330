"""Means, intervals and verdicts from what was counted in each clip; nothing but numpy.

Every score is a ratio of sums over clips: an F1 is twice the hits over what was found and what was
there, a mean is a sum over a number of clips. So a score of other clips, or of the same ones
weighted anew, comes from the counts alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from mfm_jax.typing import Float, Int

DRAWS = 10_000
GROUP = 64  # clips among which one is to be found


@dataclass(frozen=True)
class Ratio:
    """What a score adds up, by seed of the training and by clip, the clips in one order."""

    top: Float[np.ndarray, "S N"]
    bottom: Float[np.ndarray, "S N"]

    @property
    def values(self) -> Float[np.ndarray, " S"]:
        """The score of each seed over all clips."""
        return _divided(self.top.sum(axis=1), self.bottom.sum(axis=1))

    def drawn(
        self, clips: Float[np.ndarray, "R N"], seeds: Float[np.ndarray, "R S"]
    ) -> Float[np.ndarray, " R"]:
        """The mean over seeds for each row of weights of the clips and of the seeds."""
        values = _divided(clips @ self.top.T, clips @ self.bottom.T)
        return (seeds * values).sum(axis=1)


@dataclass(frozen=True)
class Difference:
    """A mean difference between two systems, and its 95 % interval."""

    value: float
    low: float
    high: float

    def verdict(self, *, higher: bool) -> str:
        """Of the claim that the first system is better; `higher` says which way that is."""
        if self.low <= 0 <= self.high:
            return "undecided"
        return "holds" if (self.low > 0) == higher else "fails"


def difference(ours: Ratio, theirs: Ratio, *, draws: int = DRAWS, seed: int = 0) -> Difference:
    """Ours less theirs, with a paired bootstrap over clips and seeds.

    A draw takes clips with replacement, the same ones for both systems and for all seeds, and pairs
    of seeds with replacement, one fewer than there are. The interval reaches from the 2.5th to the
    97.5th percentile. Where seeds differ more than clips, 5 seeds make it somewhat too narrow.

    Raises:
        ValueError: the two were not scored on the same number of clips and seeds.
    """
    if ours.top.shape != theirs.top.shape:
        raise ValueError(
            f"{ours.top.shape} and {theirs.top.shape} (seeds, clips) are no pairs: "
            "score both on the same clips and seeds"
        )
    clips, seeds = _weights(*ours.top.shape, draws, seed)
    drawn = ours.drawn(clips, seeds) - theirs.drawn(clips, seeds)
    low, high = np.percentile(drawn, (2.5, 97.5))
    return Difference(float((ours.values - theirs.values).mean()), float(low), float(high))


@lru_cache(maxsize=8)
def _weights(
    seeds: int, clips: int, draws: int, seed: int
) -> tuple[Float[np.ndarray, "R N"], Float[np.ndarray, "R S"]]:
    """How often each draw takes each clip, and the share that it gives each seed."""
    # With all seeds drawn the variance of their mean would be too small by 1 / seeds.
    rng, few = np.random.default_rng(seed), max(seeds - 1, 1)
    taken = rng.multinomial(clips, np.full(clips, 1 / clips), size=draws)
    shares = rng.multinomial(few, np.full(seeds, 1 / seeds), size=draws)
    return taken.astype(np.float64), shares / few


def _divided(
    top: Float[np.ndarray, "..."], bottom: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "..."]:
    """`top / bottom`, and 0 where there is nothing at all, as `Counts.f1` has it."""
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


def found_among(
    made: Float[np.ndarray, "N K D"], true: Float[np.ndarray, "N K D"], group: int = GROUP
) -> Int[np.ndarray, " M"]:
    """Whether each clip's predicted LOA is nearest to its own true LOA: recall at 1, by clip.

    Each is looked for among the `group` clips of its own group, which follow one another and do not
    overlap; clips that fill no group are left out, so M <= N. The nearest has the largest cosine;
    both LOA are in standard deviations from the mean of the training clips.
    """
    group = min(group, len(made))
    whole = len(made) // group * group
    sides = [x[:whole].reshape(-1, group, x[0].size).astype(np.float64) for x in (made, true)]
    sides = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in sides]
    cosines = np.einsum("gnd,gmd->gnm", *sides)
    return (cosines.argmax(axis=-1) == np.arange(group)).astype(int).reshape(-1)


def reaches(value: float, target: float, *, higher: bool) -> bool:
    """Whether `value` is at least as good as `target`."""
    return value >= target if higher else value <= target


def smallest_share(values: Mapping[float, float], target: float, *, higher: bool) -> float | None:
    """The smallest share whose value is as good as `target`; None if there is none."""
    good = [share for share, value in values.items() if reaches(value, target, higher=higher)]
    return min(good, default=None)
