"""Distances between predicted and true LOA, both in the units of a mapper's `standardise`."""

import jax
from jax import numpy as jnp

from mfm_jax.runtime.sharding import constrain
from mfm_jax.train.contrastive import clip_loss
from mfm_jax.typing import Array, Float


def mse(predicted: Float[Array, "B L E"], target: Float[Array, "B L E"]) -> Float[Array, ""]:
    """Return the mean squared error."""
    return ((predicted - target) ** 2).mean()


def l1(predicted: Float[Array, "B L E"], target: Float[Array, "B L E"]) -> Float[Array, ""]:
    """Return the mean absolute error."""
    return jnp.abs(predicted - target).mean()


def cosine_distance(
    predicted: Float[Array, "B L E"], target: Float[Array, "B L E"]
) -> Float[Array, ""]:
    """Return the mean over LOA tokens of one minus the cosine of their angle."""
    # A vector of zeros has no direction; the small number gives it a gradient all the same.
    sizes = [jax.lax.rsqrt((x**2).sum(axis=-1) + 1e-12) for x in (predicted, target)]
    return 1 - ((predicted * target).sum(axis=-1) * sizes[0] * sizes[1]).mean()


def clip_contrast(
    predicted: Float[Array, "B L E"], target: Float[Array, "B L E"], temperature: float
) -> Float[Array, ""]:
    """Return InfoNCE over the clips of the batch, both ways; each LOA is one unit vector.

    Vectors are multiplied in the precision of `predicted`: in bfloat16 devices exchange half as
    many bytes. Norms and scores are float32.
    """
    sides = [x.reshape(len(x), -1).astype(jnp.float32) for x in (predicted, target)]
    sides = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in sides]
    # Sharded by clips up to here: otherwise they would be sent before they are rounded.
    sides = [constrain(x.astype(predicted.dtype), "batch") for x in sides]
    return clip_loss(sides[0], sides[1], jnp.array(1 / temperature))


ERRORS = {"mse": mse, "l1": l1}
"""Errors that a mapper can be fitted with, by name."""
