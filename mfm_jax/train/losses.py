"""How far predicted LOA is from true LOA, both in the units of a mapper's `standardise`."""

import jax
from jax import numpy as jnp

from mfm_jax.runtime.sharding import constrain
from mfm_jax.train.contrastive import clip_loss
from mfm_jax.typing import Array, Float


def mse(predicted: Float[Array, "B K D"], target: Float[Array, "B K D"]) -> Float[Array, ""]:
    """The mean squared error."""
    return ((predicted - target) ** 2).mean()


def l1(predicted: Float[Array, "B K D"], target: Float[Array, "B K D"]) -> Float[Array, ""]:
    """The mean absolute error."""
    return jnp.abs(predicted - target).mean()


def cosine_distance(
    predicted: Float[Array, "B K D"], target: Float[Array, "B K D"]
) -> Float[Array, ""]:
    """The mean over LOA tokens of one minus the cosine of their angle: 0 where they point alike."""
    # A vector of zeros has no direction; the small number gives it a gradient all the same.
    sizes = [jax.lax.rsqrt((x**2).sum(axis=-1) + 1e-12) for x in (predicted, target)]
    return 1 - ((predicted * target).sum(axis=-1) * sizes[0] * sizes[1]).mean()


def clip_contrast(
    predicted: Float[Array, "B K D"], target: Float[Array, "B K D"], temperature: float
) -> Float[Array, ""]:
    """InfoNCE over the clips of the batch, both ways, each clip's LOA one vector of unit length.

    Vectors are multiplied in the precision of `predicted`, which halves what devices send each
    other of the batch in bfloat16; lengths, scores and what comes of them are float32.
    """
    sides = [x.reshape(len(x), -1).astype(jnp.float32) for x in (predicted, target)]
    sides = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in sides]
    # Cut by clips up to here, or they would be sent before they are rounded.
    sides = [constrain(x.astype(predicted.dtype), "batch") for x in sides]
    return clip_loss(sides[0], sides[1], jnp.array(1 / temperature))


ERRORS = {"mse": mse, "l1": l1}
"""Those that a mapper can be fitted by."""
