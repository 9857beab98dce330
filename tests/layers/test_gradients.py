"""Gradients that are written out, against those that JAX works out from the same formulas."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mfm_jax.layers import layer_norm
from mfm_jax.layers.mlp import gelu_tanh


def compare(ours, theirs, *arguments, atol):
    """Values and the gradients of all arguments, for a random direction of the output."""

    def outcome(function, *arguments):
        made, back = jax.vjp(function, *arguments)
        return made, back(jax.random.normal(jax.random.key(9), made.shape))

    (made, gradients), (expected, their_gradients) = (
        jax.jit(partial(outcome, function))(*arguments) for function in (ours, theirs)
    )
    np.testing.assert_allclose(made, expected, atol=atol)
    for one, two in zip(gradients, their_gradients, strict=True):
        np.testing.assert_allclose(one, two, atol=atol * max(1.0, float(jnp.abs(two).max())))


def test_gelu():
    x = jnp.linspace(-8.0, 8.0, 1001)
    # Far below zero 1 + tanh has lost its digits, which ours has not.
    compare(gelu_tanh, lambda x: jax.nn.gelu(x, approximate=True), x, atol=1e-5)


@pytest.mark.parametrize("shape", [(12,), (5, 12), (2, 5, 12)])
def test_layer_norm(shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3 + 2 * jax.random.normal(keys[0], shape)
    scale, bias = jax.random.normal(keys[1], (12,)), jax.random.normal(keys[2], (12,))

    def call(build, x, scale, bias):
        layer = build(12, epsilon=1e-5, rngs=nnx.Rngs(0))
        layer.scale[...], layer.bias[...] = scale, bias
        with jax.numpy_rank_promotion("allow"):
            return layer(x)

    theirs = partial(nnx.LayerNorm, use_fast_variance=False)
    compare(partial(call, layer_norm), partial(call, theirs), x, scale, bias, atol=2e-6)


def test_standardising():
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 12))
    layer = layer_norm(12, epsilon=1e-5, rngs=nnx.Rngs(0))  # of scale 1 and bias 0
    compare(layer.standardise, layer, x, atol=2e-6)


def test_in_half_precision_only_the_ends_are_rounded():
    x = jnp.linspace(-4.0, 4.0, 257).astype(jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=True)
    np.testing.assert_array_equal(gelu_tanh(x), exact.astype(jnp.bfloat16))
    gradient = jax.vmap(jax.grad(lambda x: gelu_tanh(x).astype(jnp.float32)))(x)
    true = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=True)))(x.astype(jnp.float32))
    np.testing.assert_allclose(gradient.astype(jnp.float32), true, rtol=2**-8, atol=1e-6)
