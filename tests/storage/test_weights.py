"""Weights by name, and initial weights."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from mfm_jax.layers.initial import shapes_only
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.draws import same_key
from mfm_jax.storage.weights import abstract, initialise, named_weights


def test_weights_are_those_that_flax_draws():
    build = partial(GPT2, GPT2Config(width=8, depth=2, heads=2, positions=4))
    made = initialise(build, 3)
    fast = {"xla_backend_optimization_level": 0}
    whole = jax.jit(lambda: build(rngs=nnx.Rngs(3)), compiler_options=fast)()
    assert jax.tree.structure(made) == jax.tree.structure(whole)
    assert jax.tree.structure(made) == jax.tree.structure(abstract(build))
    for name, weight in named_weights(whole).items():
        np.testing.assert_array_equal(named_weights(made)[name], weight, err_msg=name)


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
