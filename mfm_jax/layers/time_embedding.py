"""Sinusoidal embedding of a time in seconds, which video tokens and sound tokens share."""

import numpy as np
from jax import numpy as jnp

from mfm_jax.typing import Array, Float


def time_embedding(
    seconds: Float[Array, "*B L"], width: int, *, shortest: float = 0.1, longest: float = 40.0
) -> Float[Array, "*B L {width}"]:
    """Return sines and cosines of `seconds` at `width // 2` periods.

    The periods, in seconds, are geometric from `shortest` to `longest`. Tokens that belong to one
    moment get the same vector at any rate and from any encoder, so that attention can line them up.

    Raises:
        ValueError: `width` is odd.
    """
    if width % 2:
        raise ValueError(f"a time embedding needs an even width, got {width}")
    periods = np.geomspace(shortest, longest, width // 2)
    angles = seconds[..., None] * jnp.asarray(2 * np.pi / periods, seconds.dtype).reshape(
        (1,) * seconds.ndim + (-1,)
    )
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
