"""Faster ways to compute the same on one kind of device, behind plain names.

Everything that networks do for GPUs alone, or for CPUs alone, is in this file. On other devices
each function below is the plain computation that its docstring begins with.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import jax
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers.norm import LayerNorm
from mfm_jax.typing import Array, Float

T = TypeVar("T")


def platform() -> str:
    """Return "cpu", "gpu" or "tpu": what the program being traced will run on.

    The mesh in use decides (`jax.set_mesh`), whose devices need not be there: `mfm plan` compiles
    for TPUs on any machine. Without a mesh the program runs on JAX's default devices.
    """
    device = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    return jax.default_backend() if device is None else device.platform


# Products. XLA hands them to cuBLAS, which can also add and apply GELUs in the same pass.


def prenorm(
    norm: LayerNorm | None, x: Float[Array, "*B D"]
) -> tuple[Float[Array, "*B D"], LayerNorm | None]:
    """Return `norm(x)` as the input of `project`, and the norm that `project` has yet to apply.

    On GPUs `x` is only standardised here, and `project` multiplies scale and bias into its weights.
    The gradients of scale and bias are then not sums over all of `x`, and XLA needs one kernel for
    the rest and one for its gradient, in place of five for the complete norm. Scaling the weights
    takes time as well, so this pays for many positions at once. Elsewhere the second is None.
    """
    if norm is None:
        return x, None
    return (norm.standardise(x), norm) if platform() == "gpu" else (norm(x), None)


def project(
    linear: nnx.Linear, x: Float[Array, "*B D"], norm: LayerNorm | None
) -> Float[Array, "*B E"]:
    """Return `linear(x)`; `x` and `norm` are those of `prenorm`."""
    if norm is None:
        return linear(x)
    kernel, (scale, shift) = linear.kernel[...], norm.affine
    bias = (shift[:, None] * kernel).sum(axis=0)
    if linear.bias is not None:
        bias = linear.bias[...] + bias
    return x @ (scale[:, None] * kernel) + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def as_rows(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `x`, on GPUs as `[N, D]` in place of `[..., D]`.

    With rows, cuBLAS adds to a product or applies a GELU in the same pass. With other shapes XLA
    copies the summand, or computes the product again for the gradient of the GELU. On TPUs making
    rows would mean a new memory layout.
    """
    return x.reshape(-1, x.shape[-1]) if platform() == "gpu" else x


def add(x: Float[Array, "*B D"], y: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """Return `x + y`, where `x` is a residual stream and `y` comes out of a product."""
    return (as_rows(x) + as_rows(y)).reshape(x.shape)


def gelu_in_float32(gelu: Callable[[Array], Array], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `gelu(x)`, computed in float32, in the precision of `x`.

    On rows (`as_rows`) cuBLAS applies the GELU, in float32 too. XLA recognises the formula only if
    it is written in one precision.
    """

    def wide(x: Array) -> Array:
        return gelu(x.astype(jnp.float32)).astype(x.dtype)

    return lax.platform_dependent(x, cuda=gelu, default=wide) if x.ndim == 2 else wide(x)


def apart(x: T) -> T:
    """Return `x`, an array or a network, whose products XLA does not merge with others on GPUs.

    XLA merges two products that share an operand. It concatenates the other operands, such as the
    keys of several sources, and slices the result. Those copies cost more than the merge saves.
    """
    return lax.platform_dependent(x, cuda=lax.optimization_barrier, default=lambda x: x)


# Attention by cuDNN, which never writes the scores to memory.


def has_flash_attention(q: Float[Array, "B L N K"], k: Float[Array, "B S N K"]) -> bool:
    """Return whether `flash_attention` takes such queries and keys, if compiled for CUDA."""
    half, width = q.dtype in (jnp.bfloat16, jnp.float16), q.shape[-1]
    return half and width % 8 == 0 and width <= 128 and k.shape[1] >= 8 and _has_cudnn()


@cache
def _has_cudnn() -> bool:
    """Return whether this process has NVIDIA GPUs with the tensor cores for it (Ampere or later).

    The process is asked, not the mesh: a mesh does not tell the compute capability.
    """
    if jax.default_backend() != "gpu":
        return False
    device = jax.local_devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def flash_attention(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    *,
    otherwise: Callable[[Array, Array, Array], Array],
    causal: bool,
    scale: float,
) -> Float[Array, "B L N K"]:
    """Return `otherwise(q, k, v)`, the attention written out; by cuDNN if compiled for CUDA."""
    flash = partial(_flash, causal=causal, scale=scale)
    return lax.platform_dependent(q, k, v, cuda=flash, default=otherwise)


def _flash(q: Array, k: Array, v: Array, *, causal: bool, scale: float) -> Array:
    """Attend by cuDNN, for which JAX has no gradients at odd lengths: such inputs are padded."""
    queries, keys = q.shape[1], k.shape[1]
    lengths: dict[str, Any] = {}
    if queries % 2 or keys % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = {
            "query_seq_lengths": jnp.full(q.shape[:1], queries, jnp.int32),
            "key_value_seq_lengths": jnp.full(q.shape[:1], keys, jnp.int32),
        }
    y = jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=causal, implementation="cudnn", **lengths
    )
    return y[:, :queries]


# Gradients on CPUs.


@jax.custom_vjp
def gradient_once(x: Array) -> Array:
    """Return `x`. On CPUs its gradient is finished here before anything reads it.

    XLA on a CPU repeats the computation of a residual stream's gradient for each of its readers,
    through all later blocks. That time grows with the square of the depth; it was a quarter of a
    step of GPT-2 small. `lax.optimization_barrier`, which is made for this, has no effect on CPUs:
    XLA removes it too early.
    """
    return x


def _gradient_once_backward(_, gradient: Array) -> tuple[Array]:
    return (lax.platform_dependent(gradient, cpu=_through_a_branch, default=lambda x: x),)


def _through_a_branch(x: Array) -> Array:
    """Return `x` from either branch. The compiler does not see that, and fuses nothing across."""
    first = x[(0,) * x.ndim]
    return lax.cond(first == first, lambda y: y, lambda y: 1.0 * y, x)


gradient_once.defvjp(lambda x: (x, None), _gradient_once_backward)
