"""A place in a deep network up to which gradients are computed once, on a CPU."""

import jax
from jax import lax

from mfm_jax.typing import Array


@jax.custom_vjp
def finished(x: Array) -> Array:
    """`x`; its gradient is worked out here before anything before it reads it.

    XLA on a CPU works out the gradient of a residual stream anew for each of its readers, from all
    blocks behind them: time that grows with the square of the depth, a quarter of a step of GPT-2
    small. `lax.optimization_barrier`, which is made for this, is removed there before it could do
    anything. On other devices this is nothing.
    """
    return x


def _forward(x: Array) -> tuple[Array, None]:
    return x, None


def _backward(_, gradient: Array) -> tuple[Array]:
    return (lax.platform_dependent(gradient, cpu=_through_a_branch, default=lambda x: x),)


def _through_a_branch(x: Array) -> Array:
    """`x`, either way. The compiler does not look so far, and fuses nothing over a branch."""
    first = x[(0,) * x.ndim]
    return lax.cond(first == first, lambda y: y, lambda y: 1.0 * y, x)


finished.defvjp(_forward, _backward)
