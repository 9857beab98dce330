"""Classifier-free guidance."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.diffusion import guide

X = jax.random.normal(jax.random.key(0), (2, 4, 3, 5))
T = jnp.array([7, 9], jnp.int32)
COND = {"loa": jnp.full((2, 6), 2.0), "mask": jnp.ones((2, 6), bool)}
UNCOND = {"loa": jnp.zeros((2, 6)), "mask": jnp.ones((2, 6), bool)}


def denoise(x, t, condition):
    shift = condition["loa"].mean(axis=1) + t.astype(x.dtype)
    return x * 0.5 + shift[:, None, None, None]


def test_one_batch_with_the_unconditional_half_first():
    seen = []

    def spy(x, t, condition):
        seen.append((x, t, condition["loa"]))
        return denoise(x, t, condition)

    guide(spy, COND, UNCOND, 3.5)(X, T)
    ((x, t, loa),) = seen
    np.testing.assert_array_equal(x, np.concatenate([X, X]))
    np.testing.assert_array_equal(t, [7, 9, 7, 9])
    np.testing.assert_array_equal(loa[:, 0], [0, 0, 2, 2])


@pytest.mark.parametrize("scale", [0.0, 2.0, 3.5])
def test_scale_moves_from_the_unconditional_prediction(scale):
    u, c = denoise(X, T, UNCOND), denoise(X, T, COND)
    np.testing.assert_allclose(
        guide(denoise, COND, UNCOND, scale)(X, T), u + scale * (c - u), atol=1e-6
    )


def test_scale_one_is_no_guidance():
    def refuse_both_halves(x, t, condition):
        assert x.shape == X.shape
        return denoise(x, t, condition)

    guided = guide(refuse_both_halves, COND, UNCOND, 1.0)(X, T)
    np.testing.assert_array_equal(guided, denoise(X, T, COND))


def test_traced_scale_of_one_agrees():
    guided = jax.jit(lambda s: guide(denoise, COND, UNCOND, s)(X, T))(jnp.float32(1.0))
    np.testing.assert_allclose(guided, denoise(X, T, COND), atol=1e-6)


def test_half_precision_network_is_combined_in_the_precision_of_the_latents():
    def half(x, t, condition):
        return denoise(x, t, condition).astype(jnp.bfloat16)

    guided = guide(half, COND, UNCOND, 3.5)(X, T)
    assert guided.dtype == X.dtype
    u, c = (half(X, T, k).astype(X.dtype) for k in (UNCOND, COND))
    np.testing.assert_array_equal(guided, u + 3.5 * (c - u))


def test_rescaling_gives_back_the_spread_of_the_conditional_prediction():
    c = denoise(X, T, COND)
    u = denoise(X, T, UNCOND) * 0.5
    moved = u + 4.0 * (c - u)

    def both(x, t, condition):
        return jnp.concatenate([u, c])

    whole = guide(both, COND, UNCOND, 4.0, 1.0)(X, T)
    half = guide(both, COND, UNCOND, 4.0, 0.5)(X, T)
    np.testing.assert_allclose(whole.std((1, 2, 3)), c.std((1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(half, (whole + moved) / 2, rtol=1e-5)
