"""Activations computed anew: less memory, the same gradients."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers.remat import POLICIES, rematerialise
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.weights import abstract
from tests.bundles import filled

pytestmark = pytest.mark.usefixtures("no_program_cache")
CONFIG = GPT2Config(width=64, depth=4, heads=2, positions=128)
X = jnp.asarray(np.random.default_rng(0).standard_normal((4, 128, 64)), jnp.float32)


def error(network, x):
    return (network(x) ** 2 * jnp.linspace(0.0, 1.0, 64)[None, None]).mean()


@pytest.fixture(scope="module")
def network():
    return filled(abstract(partial(GPT2, CONFIG)), 0)


def compiled(network, policy):
    with rematerialise(policy):
        return jax.jit(jax.grad(error)).lower(network, X).compile()


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "none"])
def test_gradients_stay(network, policy):
    plain, again = (compiled(network, name)(network, X) for name in ("none", policy))
    for one, other in zip(
        jax.tree.leaves(nnx.state(plain)), jax.tree.leaves(nnx.state(again)), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=2e-4, atol=1e-6)


def test_each_policy_keeps_less(network):
    def kept(policy):
        with rematerialise(policy):
            back = jax.eval_shape(lambda network, x: jax.vjp(error, network, x)[1], network, X)
        return sum(leaf.size for leaf in jax.tree.leaves(back))

    assert kept("blocks") < kept("products") < kept("none")
