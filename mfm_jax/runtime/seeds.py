"""Seeds that users give: whole numbers from 0 to 2**64 - 1."""

import jax
import numpy as np

from mfm_jax.errors import SettingError
from mfm_jax.typing import Array

SEEDS = 1 << 64


def check_seed(seed: int, name: str = "seed") -> None:
    """Check that a number can be a seed.

    Raises:
        SettingError: it cannot; the message names it `name`.
    """
    if not 0 <= seed < SEEDS:
        raise SettingError(f"{name} must be from 0 to 2**64 - 1, got {seed}")


def random_key(seed: int) -> Array:
    """Return the random key of a seed.

    `jax.random.key` alone drops the upper 32 bits, unless JAX computes with 64. Below 2**32 the
    keys are the same.

    Raises:
        SettingError: it is no seed.
    """
    check_seed(seed)
    with jax.enable_x64(True):
        return jax.random.key(np.uint64(seed))
