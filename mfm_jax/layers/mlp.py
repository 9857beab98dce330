"""The two-layer feed-forward network of a transformer block."""

import math
from collections.abc import Callable
from functools import partial

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers.backend import as_rows, gelu_in_float32, prenorm, project
from mfm_jax.layers.linear import linear
from mfm_jax.layers.norm import LayerNorm
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Float

gelu_exact = partial(jax.nn.gelu, approximate=False)


@jax.custom_vjp
def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the GELU approximated by a tanh (GPT-2's), computed in float32.

    Its gradient is computed from `x` alone; JAX's own would keep the tanh as well.
    """
    return gelu_in_float32(_gelu, x)


_CUBIC = 0.044715


def _gelu(x: Array) -> Array:
    return x * (0.5 * (1.0 + jnp.tanh(_inner(x))))


def _inner(x: Array) -> Array:
    return (2 / math.pi) ** 0.5 * (x + _CUBIC * x**3)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu_tanh(x), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    wide = x.astype(jnp.float32)
    # (1 + tanh(u)) / 2 in another form: a compiler that saw the same tanh twice would keep it.
    gate = jax.nn.sigmoid(2 * _inner(wide))
    slope = (2 / math.pi) ** 0.5 * (1 + 3 * _CUBIC * wide**2)
    dx = dy.astype(jnp.float32) * (gate + 2 * wide * gate * (1 - gate) * slope)
    return (dx.astype(x.dtype),)


gelu_tanh.defvjp(_gelu_forward, _gelu_backward)


class MLP(nnx.Module):
    """`down(activation(up(x)))`; the activation is `gelu_exact` (erf) or `gelu_tanh` (GPT-2)."""

    def __init__(
        self, width: int, mlp_width: int, *, activation: Callable = gelu_exact, rngs: nnx.Rngs
    ) -> None:
        self.activation = activation
        self.up = linear(width, mlp_width, ("embed", "mlp"), rngs=rngs)
        self.down = linear(mlp_width, width, ("mlp", "embed"), rngs=rngs)

    def __call__(
        self, x: Float[Array, "*B D"], *, norm: LayerNorm | None = None
    ) -> Float[Array, "*B D"]:
        """Return the output for `norm(x)`, or for `x` without a `norm`."""
        normed, rest = prenorm(norm, x)
        y = self.down(self.activation(project(self.up, as_rows(normed), rest)))
        return constrain(y.reshape(x.shape), "batch")
