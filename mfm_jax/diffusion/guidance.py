"""Classifier-free guidance: push the prediction away from what an empty condition gives."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from mfm_jax.typing import Array

Denoiser = Callable[[Array, Array], Array]


def guide(
    denoise: Callable[[Array, Array, Any], Array], cond: Any, uncond: Any, scale: float | Array
) -> Denoiser:
    """The denoiser `(x, t) -> u + scale (c - u)` of the conditional `denoise(x, t, condition)`.

    `cond` and `uncond` are pytrees of the same structure and shapes, batch first. Both halves go
    through the network as one batch, the unconditional one first. A `scale` of 1.0 is no guidance
    and evaluates the conditional half only, unless it is an array, whose value is not known.
    """
    if isinstance(scale, float) and scale == 1.0:
        return lambda x, t: denoise(x, t, cond)
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)

    def guided(x: Array, t: Array) -> Array:
        output = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        # In the precision of the latents: the scale magnifies the rounding of the difference.
        u, c = jnp.split(output.astype(x.dtype), 2)
        return u + scale * (c - u)

    return guided
