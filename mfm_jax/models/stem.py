"""Layers that stand between a stream and what reads it, and are trained with that."""

import jax
from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import conv, layer_norm, linear
from mfm_jax.models.streams import PLACES, Stream
from mfm_jax.typing import Array, Bool, Float

WIDTH = 128
"""Channels between the convolutions of a stem."""
PLACE_WIDTH = 16
"""Width of a place behind a grid's layer."""


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


class Grid(nnx.Module):
    """Let every place of a token that is a grid pass the same norm and linear layer.

    A layer over the whole token would have to learn for each place anew what can be there.
    """

    def __init__(self, width: int, *, rngs: nnx.Rngs) -> None:
        self.norm = layer_norm(width // PLACES, epsilon=1e-5, rngs=rngs)
        self.proj = linear(width // PLACES, PLACE_WIDTH, ("mlp", "embed"), rngs=rngs)

    @property
    def width(self) -> int:
        """Width of the tokens that are returned."""
        return PLACES * PLACE_WIDTH

    def __call__(self, stream: Stream) -> Stream:
        places = rearrange(stream.tokens, "b s (p d) -> b s p d", p=PLACES)
        x = self.proj(self.norm(places.astype(self.proj.kernel.dtype)))
        return stream._replace(tokens=rearrange(x, "b s p d -> b s (p d)"))


def _masked(x: Float[Array, "B S C"], mask: Bool[Array, "B S"] | None) -> Float[Array, "B S C"]:
    return x if mask is None else jnp.where(mask[:, :, None], x, 0)
