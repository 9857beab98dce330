"""Convolutions that are computed in another way than Flax's, with the same result."""

import jax
import numpy as np
import pytest
from einops import repeat
from flax import nnx

from mfm_jax.layers import conv, conv_doubled


@pytest.mark.parametrize(("height", "width"), [(4, 6), (1, 1), (5, 1), (3, 2)])
@pytest.mark.parametrize("bias", [True, False])
def test_as_the_convolution_of_repeated_rows_and_columns(height, width, bias):
    layer = conv(5, 7, (3, 3), padding=1, bias=bias, rngs=nnx.Rngs(0))
    x, dy = (
        jax.random.normal(jax.random.key(i), (2, height * by, width * by, channels))
        for i, (by, channels) in enumerate(((1, 5), (2, 7)))
    )

    def plainly(layer, x):
        return layer(repeat(x, "b h w c -> b (h m) (w n) c", m=2, n=2))

    @nnx.jit
    def values_and_gradients(layer, x):
        def both(function):
            error = nnx.grad(lambda n, x: (function(n, x) * dy).sum(), argnums=(0, 1))
            return function(layer, x), error(layer, x)

        return both(conv_doubled), both(plainly)

    (one, gradients), (other, expected) = values_and_gradients(layer, x)
    np.testing.assert_allclose(one, other, atol=1e-5)
    for one, other in zip(*map(jax.tree.leaves, (gradients, expected)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("kernel", "strides", "dilation", "bias"), [(3, 1, 1, True), (5, 2, 3, False)]
)
def test_one_axis_is_computed_as_a_row(kernel, strides, dilation, bias):
    layer = conv(
        3, 4, (kernel,), strides=strides, padding=2, dilation=dilation, bias=bias, rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(1), (2, 23, 3))
    plain = nnx.Conv(
        3, 4, (kernel,), strides=strides, padding=[(2, 2)], kernel_dilation=dilation, use_bias=bias,
        rngs=nnx.Rngs(0),
    )  # fmt: skip
    np.testing.assert_allclose(layer(x), plain(x), atol=1e-6)
