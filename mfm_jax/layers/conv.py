"""Convolutions over channels-last arrays of any spatial rank."""

from collections.abc import Sequence
from typing import Any

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
        conv_general_dilated=_convolve_row if rank == 1 else lax.conv_general_dilated,
        kernel_init=lecun_normal,
        kernel_metadata={"axes": (None,) * rank + ("conv_in", "conv_out")},
        bias_metadata={"axes": ("conv_out",)},
        rngs=rngs,
    )


def _convolve_row(
    x: Float[Array, "B L C"],
    kernel: Float[Array, "K C C2"],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    *,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    **others: Any,
) -> Float[Array, "B L2 C2"]:
    """Convolve over one axis as in a picture with one row.

    XLA's convolutions over one axis take up to twice as long on a CPU.
    """
    del dimension_numbers  # those of one axis
    y = lax.conv_general_dilated(
        x[:, None],
        kernel[None],
        (1, *strides),
        [(0, 0), *padding],
        lhs_dilation=(1, *lhs_dilation),
        rhs_dilation=(1, *rhs_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        **others,
    )
    return y[:, 0]


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
