"""Normalisations. Statistics are computed in float32, and the epsilon is always stated."""

from functools import partial
from typing import Any, cast

import jax
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.typing import Array, Float

_AXES: dict[str, Any] = {
    "scale_metadata": {"axes": ("norm",)},
    "bias_metadata": {"axes": ("norm",)},
}


class LayerNorm(nnx.LayerNorm):
    """Flax's LayerNorm with its gradient written out.

    Without that, compilers for GPUs compute the mean again for the gradients, and write to memory,
    in float32, the products whose sum is the gradient of the scale.
    """

    def __call__(self, x: Float[Array, "*B D"], **_: Any) -> Float[Array, "*B D"]:
        return _layer_norm(x, *self.affine, self.epsilon)

    @property
    def affine(self) -> tuple[Float[Array, " D"], Float[Array, " D"]]:
        """Scale and bias, each `[width]`."""
        return cast(nnx.Param, self.scale)[...], cast(nnx.Param, self.bias)[...]

    def standardise(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """Return `x` at mean 0 and variance 1, without scale and bias.

        For its gradient only `x` is kept.
        """
        return _standardise(x, self.epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, tuple]:
    mean, rate = _statistics(x, epsilon)
    y = (x.astype(jnp.float32) - mean) * (rate * _last(scale, x)) + _last(bias, x)
    return y.astype(x.dtype), (x, mean, rate, scale, bias)


def _backward(epsilon: float, kept: tuple, dy: Array) -> tuple[Array, Array, Array]:
    x, mean, rate, scale, bias = lax.optimization_barrier(kept)  # or they would not be kept
    dy, normed = dy.astype(jnp.float32), (x.astype(jnp.float32) - mean) * rate
    rows = tuple(range(x.ndim - 1))
    dscale, dbias = (dy * normed).sum(axis=rows), dy.sum(axis=rows)
    dx = _through(dy * _last(scale, x), normed, rate)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_layer_norm.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _standardise(x: Array, epsilon: float) -> Array:
    mean, rate = _statistics(x, epsilon)
    return ((x.astype(jnp.float32) - mean) * rate).astype(x.dtype)


def _standardise_backward(epsilon: float, x: Array, dy: Array) -> tuple[Array]:
    x = lax.optimization_barrier(x)  # or the statistics would be kept as well
    mean, rate = _statistics(x, epsilon)
    normed = (x.astype(jnp.float32) - mean) * rate
    return (_through(dy.astype(jnp.float32), normed, rate).astype(x.dtype),)


_standardise.defvjp(lambda x, epsilon: (_standardise(x, epsilon), x), _standardise_backward)


def _statistics(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Return the mean of each row and one over its standard deviation, in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    return mean, lax.rsqrt(jnp.square(wide - mean).mean(axis=-1, keepdims=True) + epsilon)


def _through(dy: Array, normed: Array, rate: Array) -> Array:
    """Return the gradient of the input from `dy`, that of the standardised `normed`, in float32."""
    along = (dy * normed).mean(axis=-1, keepdims=True)
    return rate * (dy - dy.mean(axis=-1, keepdims=True) - normed * along)


def _last(vector: Array, x: Array) -> Array:
    """Return `vector` in float32, shaped to broadcast over all axes of `x` but the last."""
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + vector.shape)


def layer_norm(width: int, *, epsilon: float, rngs: nnx.Rngs) -> LayerNorm:
    """Return a LayerNorm over the last axis of `[..., width]`."""
    return LayerNorm(width, epsilon=epsilon, use_fast_variance=False, rngs=rngs, **_AXES)


class GroupNorm(nnx.GroupNorm):
    """Flax's GroupNorm with sums over space for each channel, and over a group's channels last.

    Flax makes an axis of the channels of a group. They are few, 4 to 16, and processors with wide
    registers waste most of them on such an axis: TPUs pad it to 128.
    """

    def __call__(self, x: Float[Array, "B *S C"], **_: Any) -> Float[Array, "B *S C"]:
        wide = x.astype(jnp.float32)
        centred = wide - self._of_groups(wide)
        rate = lax.rsqrt(self._of_groups(jnp.square(centred)) + self.epsilon)
        scale, bias = (cast(nnx.Param, p)[...] for p in (self.scale, self.bias))
        return (centred * (rate * _last(scale, x)) + _last(bias, x)).astype(x.dtype)

    def _of_groups(self, x: Float[Array, "B *S C"]) -> Float[Array, "B *ones C"]:
        """Return the mean over space and the channels of a group, at each of these channels."""
        space = tuple(range(1, x.ndim - 1))
        channels = x.mean(axis=space)
        groups = channels.reshape(len(x), self.num_groups, -1).mean(axis=-1)
        means = jnp.repeat(groups, x.shape[-1] // self.num_groups, axis=-1)
        return jnp.expand_dims(means, space)


def group_norm(channels: int, groups: int, *, epsilon: float, rngs: nnx.Rngs) -> GroupNorm:
    """Return a GroupNorm over space and the channels of each group of `[B, *space, channels]`."""
    return GroupNorm(channels, groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs, **_AXES)


def batch_norm(channels: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Return a BatchNorm over all but the last axis, with PyTorch's momentum 0.1.

    It starts in inference mode (running statistics); `module.train()` switches to batch statistics.
    """
    return nnx.BatchNorm(
        channels,
        epsilon=epsilon,
        momentum=0.9,
        use_running_average=True,
        use_fast_variance=False,
        rngs=rngs,
        **_AXES,
    )
