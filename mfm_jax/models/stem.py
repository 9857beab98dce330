"""A stem: a few convolutions over the tokens of a stream, trained with what reads them."""

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import conv
from mfm_jax.models.streams import Stream
from mfm_jax.typing import Array, Bool, Float

WIDTH = 128
"""Channels between the convolutions."""


class Stem(nnx.Module):
    """Let every token of a stream see its neighbours, six on either side.

    Tokens of a frozen network know their surroundings. Those of plain measurements, as of motion,
    do not: a stem finds in them what happens. What it finds is added to the tokens. They are taken
    to be evenly spaced in time, and masked ones are seen as zeros.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.first = conv(width, WIDTH, (5,), padding=2, rngs=rngs)
        self.second = conv(WIDTH, WIDTH, (5,), padding=4, dilation=2, rngs=rngs)
        self.last = conv(WIDTH, width, (1,), rngs=rngs)

    def __call__(self, stream: Stream) -> Stream:
        tokens = stream.tokens.astype(self.first.kernel.dtype)
        x = _masked(tokens, stream.mask)
        x = _masked(jax.nn.silu(self.first(x)), stream.mask)
        x = jax.nn.silu(self.second(x))
        return stream._replace(tokens=tokens + self.last(x))


def _masked(x: Float[Array, "B S C"], mask: Bool[Array, "B S"] | None) -> Float[Array, "B S C"]:
    return x if mask is None else jnp.where(mask[:, :, None], x, 0)
