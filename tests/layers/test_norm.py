"""GroupNorm by channels is Flax's GroupNorm, in values and gradients."""

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import group_norm


@pytest.mark.parametrize("shape", [(2, 7, 5, 24), (3, 11, 16), (1, 4, 3, 2, 8)])
def test_as_flax(shape):
    channels, rng = shape[-1], np.random.default_rng(0)
    ours = group_norm(channels, 4, epsilon=1e-5, rngs=nnx.Rngs(0))
    theirs = nnx.GroupNorm(channels, 4, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))
    for norm in (ours, theirs):
        draws = np.random.default_rng(1)
        for weight in (norm.scale, norm.bias):
            weight.set_value(jnp.asarray(draws.standard_normal(channels), jnp.float32))
    x, dy = (np.float32(3 + 2 * rng.standard_normal(shape)) for _ in range(2))

    @jax.jit
    def value_and_gradients(norm, x):
        y, back = jax.vjp(lambda norm, x: norm(x), norm, x)
        return y, back(dy.astype(y.dtype))

    (y, gradients), (expected, theirs) = (value_and_gradients(n, x) for n in (ours, theirs))
    np.testing.assert_allclose(y, expected, atol=2e-5)
    for one, other in zip(*map(jax.tree.leaves, (gradients, theirs)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)
    half, _ = value_and_gradients(ours, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(np.float32), y, atol=0.05)
