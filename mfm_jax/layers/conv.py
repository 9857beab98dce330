"""Convolutions over channels-last arrays of any spatial rank."""

from collections.abc import Sequence

from flax import nnx


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
        kernel_metadata={"axes": (None,) * rank + ("conv_in", "conv_out")},
        bias_metadata={"axes": ("conv_out",)},
        rngs=rngs,
    )
