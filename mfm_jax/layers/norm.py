"""Normalisations. Statistics are computed in float32, and the epsilon is always stated."""

from typing import Any

from flax import nnx

_AXES: dict[str, Any] = {
    "scale_metadata": {"axes": ("norm",)},
    "bias_metadata": {"axes": ("norm",)},
}


def layer_norm(d: int, *, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis of `[..., d]`."""
    return nnx.LayerNorm(d, epsilon=epsilon, use_fast_variance=False, rngs=rngs, **_AXES)


def group_norm(channels: int, groups: int, *, epsilon: float, rngs: nnx.Rngs) -> nnx.GroupNorm:
    """GroupNorm over space and the channels of each group of `[B, *space, channels]`."""
    return nnx.GroupNorm(
        channels, groups, epsilon=epsilon, use_fast_variance=False, rngs=rngs, **_AXES
    )


def batch_norm(channels: int, *, epsilon: float = 1e-5, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm over all but the last axis, with PyTorch's momentum 0.1.

    Starts in inference mode (running statistics); `module.train()` switches to batch statistics.
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
