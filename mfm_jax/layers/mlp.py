"""The two-layer feed-forward network of a transformer block."""

import math
from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers.linear import linear
from mfm_jax.layers.norm import LayerNorm
from mfm_jax.layers.products import as_rows, project
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Float

gelu_exact = partial(jax.nn.gelu, approximate=False)


@jax.custom_vjp
def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU by a tanh (GPT-2's), in float32 whatever `x` is.

    Its gradient is worked out from `x` alone: left to itself, JAX keeps the tanh as well.
    """

    def wide(x: Array) -> Array:
        return _gelu(x.astype(jnp.float32)).astype(x.dtype)

    if x.ndim != 2:
        return wide(x)
    # Of rows (`as_rows`) cuBLAS does it, in float32 as well, if it is written in one precision:
    # that is how XLA knows it.
    return lax.platform_dependent(x, cuda=_gelu, default=wide)


_CUBIC = 0.044715


def _gelu(x: Array) -> Array:
    return x * (0.5 * (1.0 + jnp.tanh(_inner(x))))


def _inner(x: Array) -> Array:
    return (2 / math.pi) ** 0.5 * (x + _CUBIC * x**3)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu_tanh(x), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    # (1 + tanh(u)) / 2, said in another way: a compiler that saw the same tanh twice would keep it.
    gate = jax.nn.sigmoid(2 * _inner(wide))
    slope = (2 / math.pi) ** 0.5 * (1 + 3 * _CUBIC * wide**2)
    dx = dy.astype(jnp.float32) * (gate + 2 * wide * gate * (1 - gate) * slope)
    return (dx.astype(x.dtype),)


gelu_tanh.defvjp(_gelu_forward, _gelu_backward)


class MLP(nnx.Module):
    """`down(activation(up(x)))`; the activation is `gelu_exact` (erf) or `gelu_tanh` (GPT-2)."""

    def __init__(
        self, d: int, d_ff: int, *, activation: Callable = gelu_exact, rngs: nnx.Rngs
    ) -> None:
        self.activation = activation
        self.up = linear(d, d_ff, ("embed", "mlp"), rngs=rngs)
        self.down = linear(d_ff, d, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "*B D"], *, norm: LayerNorm | None = None
    ) -> Float[Array, "*B D"]:
        """`x` and `norm` may be those of `to_project`."""
        y = self.down(self.activation(project(self.up, as_rows(x), norm)))
        return constrain(y.reshape(x.shape), "batch")
