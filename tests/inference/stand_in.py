"""A stand-in for the networks, for tests of the work around them."""

from collections.abc import Callable, Sequence

import numpy as np

from mfm_jax.inference.pipeline import Made
from mfm_jax.inference.work import Item, Networks


def networks(sound: Callable[[Sequence[Item]], np.ndarray]) -> Networks:
    """Return networks that make the waves `[B, A]` that `sound` returns."""

    def start(items: Sequence[Item]) -> Made:
        waves = np.asarray(sound(items), np.float32)
        return Made(waves[:, None], np.zeros((len(waves), 1, 1), np.float32))

    return Networks(start)
