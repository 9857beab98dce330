"""Products as cuBLAS does them best. Elsewhere than on GPUs all of this changes nothing."""

import jax
from flax import nnx
from jax import lax

from mfm_jax.layers.norm import LayerNorm
from mfm_jax.typing import Array, Float


def to_project(
    norm: LayerNorm, x: Float[Array, "*B D"]
) -> tuple[Float[Array, "*B D"], LayerNorm | None]:
    """What `project` takes of `norm(x)`.

    Where this process computes on GPUs, `x` is standardised alone and the weights of the products
    take up scale and bias, whose gradients are then no sums over all of `x`. XLA makes one kernel
    of that, and another one of its gradient; it makes five of a whole norm.
    """
    return (norm.standardise(x), norm) if _on_gpus() else (norm(x), None)


def project(
    linear: nnx.Linear, x: Float[Array, "*B D"], norm: LayerNorm | None
) -> Float[Array, "*B E"]:
    """`linear(x)`, or of `x` with the scale and bias of `norm` where there is one left."""
    if norm is None:
        return linear(x)
    kernel, (scale, shift) = linear.kernel[...], norm.affine
    bias = (shift[:, None] * kernel).sum(axis=0)
    if linear.bias is not None:
        bias = linear.bias[...] + bias
    return x @ (scale[:, None] * kernel) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def as_rows(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` of `[..., D]` as `[N, D]` where this process computes on GPUs.

    Products of rows leave cuBLAS with what is added to them, or with their GELU. Of other arrays
    XLA copies what is added, or multiplies once more for the gradient of the GELU. TPUs would lay
    out anew what is made rows.
    """
    return x.reshape(-1, x.shape[-1]) if _on_gpus() else x


def add(x: Float[Array, "*B D"], y: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """`x + y`, where `y` is a product and `x` is read by others as well: a residual stream."""
    return (as_rows(x) + as_rows(y)).reshape(x.shape)


def apart(x: Array) -> Array:
    """`x`, whose products and gradients are not joined with those of what it was made from.

    Of two products with `x` XLA makes one, for which it lays their other sides in one array, as all
    keys of several sources, and cuts what comes out.
    """
    return lax.platform_dependent(x, cuda=lax.optimization_barrier, default=lambda x: x)


def _on_gpus() -> bool:
    return jax.default_backend() == "gpu"
