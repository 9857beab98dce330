"""Retrieval: whether a clip, among others, is nearest to its own counterpart."""

from collections.abc import Sequence

import numpy as np

from mfm_jax.typing import Float

GROUP = 64
"""Clips among which one is looked for."""


def retrieval_hits(
    queries: Sequence[Float[np.ndarray, "_ D"]], targets: Sequence[Float[np.ndarray, "_ D"]]
) -> Float[np.ndarray, " N"]:
    """Return 1 for each query that is nearest to the target of its own place, else 0.

    Nearest is that of the largest cosine, over the rows that all clips of the group have.
    Consecutive groups of `GROUP` clips are searched; nan where a group has a single clip.
    """
    hits = np.full(len(queries), np.nan)
    for at in range(0, len(queries), GROUP):
        group = slice(at, at + GROUP)
        sides = [list(side[group]) for side in (queries, targets)]
        if len(sides[0]) < 2:
            continue
        shortest = min(len(rows) for side in sides for rows in side)
        x, y = (np.stack([rows[:shortest].ravel() for rows in side]) for side in sides)
        x, y = (a / np.maximum(np.linalg.norm(a, axis=1, keepdims=True), 1e-12) for a in (x, y))
        hits[group] = (x @ y.T).argmax(axis=1) == np.arange(len(x))
    return hits
