"""Sinusoid of a time in seconds: the one clock that video tokens and sound tokens share."""

import numpy as np
from jax import numpy as jnp

from mfm_jax.typing import Array, Float


def clock(
    seconds: Float[Array, "*B L"], d: int, *, shortest: float = 0.1, longest: float = 40.0
) -> Float[Array, "*B L {d}"]:
    """Sines and cosines of `seconds` at `d // 2` periods, geometric from `shortest` to `longest`.

    Tokens of any rate or encoder that belong to one moment get the same vector, which is what lets
    attention line them up.

    Raises:
        ValueError: `d` is odd.
    """
    if d % 2:
        raise ValueError(f"a clock needs an even width, got {d}")
    periods = np.geomspace(shortest, longest, d // 2)
    angles = seconds[..., None] * jnp.asarray(2 * np.pi / periods, seconds.dtype).reshape(
        (1,) * seconds.ndim + (-1,)
    )
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
