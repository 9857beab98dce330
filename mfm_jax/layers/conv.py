"""Convolutions over channels-last arrays of any spatial rank."""

from collections.abc import Sequence

from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers.initial import lecun_normal
from mfm_jax.typing import Array, Float


def conv(
    c_in: int,
    c_out: int,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    bias: bool = True,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Return a convolution from `[..., *space, c_in]` to `[..., *space', c_out]`.

    `kernel` has one size for each axis of space, and so may `padding`: the number of zeros on
    either side of an axis, as in PyTorch. The weight is `[*kernel, c_in, c_out]`.
    """
    rank = len(kernel)
    pads = (padding,) * rank if isinstance(padding, int) else tuple(padding)
    return nnx.Conv(
        c_in,
        c_out,
        tuple(kernel),
        strides=strides,
        padding=[(p, p) for p in pads],
        kernel_dilation=dilation,
        use_bias=bias,
        kernel_init=lecun_normal,
        kernel_metadata={"axes": (None,) * rank + ("conv_in", "conv_out")},
        bias_metadata={"axes": ("conv_out",)},
        rngs=rngs,
    )


def conv_doubled(layer: nnx.Conv, x: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C2"]:
    """Return a 3x3 convolution of `x` with every row and column repeated, which is never made.

    Of the three rows that an output reads, two are the same. So an even row reads two rows of `x`
    and an odd row two others, with kernels of which two rows are added, and columns likewise: four
    convolutions of 2x2, with 4/9 of the arithmetic, whose outputs are interleaved.
    """
    height, width = x.shape[1:3]
    rows = []
    for i, of_rows in enumerate(_halves(layer.kernel[...], 0)):
        columns = [
            lax.conv_general_dilated(
                x,
                kernel,
                (1, 1),
                [(1 - i, i), (1 - j, j)],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            for j, kernel in enumerate(_halves(of_rows, 1))
        ]
        rows.append(jnp.stack(columns, axis=3))
    y = jnp.stack(rows, axis=2).reshape(len(x), 2 * height, 2 * width, -1)
    return y if layer.bias is None else y + layer.bias[...][None, None, None]


def _halves(kernel: Array, axis: int) -> tuple[Array, Array]:
    """Return the kernels of even and of odd places along an axis of three."""
    first, middle, last = jnp.split(kernel, 3, axis)
    return (
        jnp.concatenate([first, middle + last], axis),
        jnp.concatenate([first + middle, last], axis),
    )
