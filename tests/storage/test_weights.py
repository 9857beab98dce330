"""Weights by name, and initial weights."""

from functools import partial

import jax
import numpy as np

from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage import weights
from mfm_jax.storage.weights import _rngs, initialise, named_weights


def test_drawing_in_parts_changes_no_weight(monkeypatch):
    monkeypatch.setattr(weights, "_TOGETHER", 10)
    build = partial(GPT2, GPT2Config(width=8, depth=2, heads=2, positions=4))
    made = initialise(build, 3)
    fast = {"xla_backend_optimization_level": 0}
    whole = jax.jit(lambda: build(rngs=_rngs(3)), compiler_options=fast)()
    assert len(jax.tree.leaves(whole)) > 2 * 10
    assert jax.tree.structure(made) == jax.tree.structure(whole)
    for name, weight in named_weights(whole).items():
        np.testing.assert_array_equal(named_weights(made)[name], weight, err_msg=name)
