"""Weights by name, and initial weights."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers.initial import shapes_only
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.draws import _compiled, same_key
from mfm_jax.storage.weights import abstract, initialise, named_weights


class Unusual(nnx.Module):
    """Weights whose numbers depend on one another, or that have one number or no axis."""

    def __init__(self, *, rngs: nnx.Rngs) -> None:
        self.turn = nnx.Param(nnx.initializers.orthogonal()(rngs.params(), (3, 5), jnp.float32))
        self.mean = nnx.Param(rngs.params.normal((7, 2), jnp.float32).mean(axis=0, keepdims=True))
        self.one = nnx.Param(rngs.params.normal((1, 1), jnp.float32) * 3.0)
        self.scalar = nnx.Param(rngs.params.uniform((), jnp.float32))


@pytest.mark.parametrize(
    "build",
    [
        partial(GPT2, GPT2Config(width=8, depth=2, heads=2, positions=4)),
        partial(Vocoder, VocoderConfig.tiny()),
        Unusual,
    ],
)
def test_weights_are_those_that_flax_draws(build):
    assert_drawn_as_by_flax(build)


def assert_drawn_as_by_flax(build):
    made = initialise(build, 3)
    fast = {"xla_backend_optimization_level": 0}
    whole = jax.jit(lambda: build(rngs=nnx.Rngs(3)), compiler_options=fast)()
    assert jax.tree.structure(made) == jax.tree.structure(whole)
    assert jax.tree.structure(made) == jax.tree.structure(abstract(build))
    for name, weight in named_weights(whole).items():
        np.testing.assert_array_equal(named_weights(made)[name], weight, err_msg=name)


@pytest.mark.parametrize("told", ["older numbers", "numbers of the device"])
def test_so_are_those_of_random_numbers_that_depend_on_the_shape(told):
    build = partial(GPT2, GPT2Config(width=8, depth=1, heads=2, positions=3))
    older = jax.threefry_partitionable(False)
    with older if told == "older numbers" else jax.default_prng_impl("rbg"):
        assert_drawn_as_by_flax(build)


def test_networks_of_many_shapes_are_drawn_by_few_programs():
    """A program for each shape would take most of the time that a small training does."""
    initialise(partial(Vocoder, VocoderConfig.tiny()), 0)
    small = replace(UNetConfig.tiny(), channels=(8, 12), attentions=((), (0,)), groups=4)
    build = partial(UNet, small)
    before = _compiled.cache_info().misses
    shapes = {weight.shape for weight in named_weights(initialise(build, 0)).values()}
    assert len(shapes) > 25
    assert _compiled.cache_info().misses - before < 5
    initialise(build, 1)
    assert _compiled.cache_info().misses - before < 5


def test_weights_that_are_not_wanted_stay_shapes_and_change_no_other():
    build = partial(GPT2, GPT2Config(width=8, depth=2, heads=2, positions=4))
    whole = named_weights(initialise(build, 3))
    made = named_weights(initialise(build, 3, shapes_only=("blocks.0.*", "wpe*")))
    shapes = {n: w for n, w in made.items() if isinstance(w, jax.ShapeDtypeStruct)}
    assert shapes
    assert shapes.keys() == {n for n in whole if n.startswith(("blocks.0.", "wpe"))}
    for name, weight in whole.items():
        assert (made[name].shape, made[name].dtype) == (weight.shape, weight.dtype)
        if name not in shapes:
            np.testing.assert_array_equal(made[name], weight, err_msg=name)


@pytest.mark.parametrize(
    "build", [partial(GPT2, GPT2Config.tiny()), partial(Vocoder, VocoderConfig.tiny())]
)
def test_describing_a_network_traces_no_draws(build):
    with shapes_only():
        traced = jax.make_jaxpr(lambda: build(rngs=same_key()))()
    assert "random_bits" not in str(traced)
