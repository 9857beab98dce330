"""Classifier-free guidance: move the prediction away from that of an empty condition."""

from collections.abc import Callable
from typing import Any

import jax
from jax import numpy as jnp

from mfm_jax.typing import Array

Denoiser = Callable[[Array, Array], Array]


def guide(
    denoise: Callable[[Array, Array, Any], Array],
    cond: Any,
    uncond: Any,
    scale: float | Array,
    rescale: float = 0.0,
) -> Denoiser:
    """Return the guided denoiser `(x, t) -> u + scale (c - u)` of `denoise(x, t, condition)`.

    `c` is the prediction with `cond` and `u` that with `uncond`, which are pytrees of the same
    structure and shapes, batch first. Both go through the network as one batch, `uncond` first. A
    `scale` of 1.0 means no guidance and computes `c` alone, unless it is an array, whose value is
    not known to the compiler.

    Args:
        rescale: how far the standard deviation of each example's prediction is brought back to that
            of `c`, from 0 (not at all) to 1 (Lin et al., arXiv 2305.08891, section 3.4).
    """
    if isinstance(scale, float) and scale == 1.0:
        return lambda x, t: denoise(x, t, cond)
    both = jax.tree.map(lambda u, c: jnp.concatenate([u, c]), uncond, cond)

    def guided(x: Array, t: Array) -> Array:
        output = denoise(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both)
        # In the precision of the latents, because the scale magnifies rounding errors.
        u, c = jnp.split(output.astype(x.dtype), 2)
        moved = u + scale * (c - u)
        if not rescale:
            return moved
        axes = tuple(range(1, x.ndim))
        spread, wanted = (jnp.std(each, axis=axes, keepdims=True) for each in (moved, c))
        return moved * (1 - rescale + rescale * wanted / jnp.maximum(spread, 1e-6))

    return guided
