"""The two-layer feed-forward network of a transformer block."""

from collections.abc import Callable
from functools import partial

import jax
from flax import nnx

from mfm_jax.layers.linear import linear
from mfm_jax.sharding import constrain
from mfm_jax.typing import Array, Float

gelu_exact = partial(jax.nn.gelu, approximate=False)
gelu_tanh = partial(jax.nn.gelu, approximate=True)


class MLP(nnx.Module):
    """`down(activation(up(x)))`; the activation is `gelu_exact` (erf) or `gelu_tanh` (GPT-2)."""

    def __init__(
        self, d: int, d_ff: int, *, activation: Callable = gelu_exact, rngs: nnx.Rngs
    ) -> None:
        self.activation = activation
        self.up = linear(d, d_ff, ("embed", "mlp"), rngs=rngs)
        self.down = linear(d_ff, d, ("mlp", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return constrain(self.down(self.activation(self.up(x))), "batch")
