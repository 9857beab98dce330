"""The kernel for TPUs, interpreted: it attends as attention written out does."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.layers import tpu_attention
from mfm_jax.layers.attention import attend

SHAPES = {
    "EVA-CLIP-g": (2, 257, 257, 16, 88),
    "UNet, level 3": (1, 256, 256, 8, 48),
    "UNet, queries in parts": (1, 1024, 1024, 8, 32),
    "keys of another length": (2, 40, 24, 2, 64),
}


def drawn(batch, length, seen, heads, width, dtype):
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = (length, seen, seen, length)
    return [
        jax.random.normal(key, (batch, n, heads, width), dtype)
        for key, n in zip(keys, shapes, strict=True)
    ]


def attention(q, k, v):
    return tpu_attention.attention(q, k, v, attend, q.shape[-1] ** -0.5, True)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize(("dtype", "near"), [("float32", 2e-6), ("bfloat16", 0.02)])
def test_as_written_out(shape, dtype, near):
    q, k, v, _ = drawn(*shape, dtype)
    assert tpu_attention.fits(q, k)
    found = attention(q, k, v)
    assert found.dtype == dtype
    expected = attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=near)


def test_gradients_are_those_of_the_other():
    q, k, v, dy = drawn(1, 16, 16, 2, 64, "float32")

    def gradients(function):
        return jax.grad(lambda *x: (function(*x) * dy).sum(), argnums=(0, 1, 2))(q, k, v)

    for one, other in zip(gradients(attention), gradients(attend), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ((1, 16, 16, 2, 40), "80 channels do not fill registers"),
        ((1, 16, 16, 1, 256), "a head is wider than a register"),
        ((1, 4096, 4096, 8, 16), "the keys do not fit"),
        ((1, 515, 515, 8, 16), "queries in parts that do not divide"),
        ((1, 256, 1, 2, 64), "one key, such as the empty text"),
    ],
)
def test_what_does_not_fit_is_left_to_xla(shape, why):
    q, k, _, _ = drawn(*shape, "bfloat16")
    assert not tpu_attention.fits(q, k), why
