"""A stem: what it sees, and where it may stand."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.errors import SettingError
from mfm_jax.mapper import MapperConfig, Stream, build_mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.models.stem import Stem
from mfm_jax.storage.weights import named_weights

CONFIG = MapperConfig(
    encoders=(("cavp", 5, 12), ("motion", 20, 6), ("motion:2", 20, 6)),
    loa_width=14,
    loa=LOA(grid=(6, 2), pool=(1, 2)),
    gpt2=GPT2Config(width=16, depth=1, heads=2, positions=64),
    head=True,
    stems=("motion",),
)


@jax.jit
def seen(stem, stream):
    return stem(stream).tokens


def test_a_token_sees_six_neighbours_on_either_side_and_no_padding():
    stem = Stem(6, rngs=nnx.Rngs(0))
    tokens = jax.random.normal(jax.random.key(0), (1, 40, 6))
    stream = Stream(tokens, jnp.arange(40.0)[None] / 25)
    changed = stream._replace(tokens=tokens.at[0, 20].add(1.0))
    moved = np.abs(seen(stem, changed) - seen(stem, stream)).max(axis=(0, 2)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(moved), np.arange(14, 27))
    # Padding is what the convolutions put behind the end, too.
    padded = changed._replace(mask=jnp.arange(40)[None] < 30)
    cut = Stream(changed.tokens[:, :30], changed.seconds[:, :30])
    np.testing.assert_allclose(seen(stem, padded)[:, :30], seen(stem, cut), atol=1e-6)


def test_a_stem_is_trained_with_the_mapper_and_adds_nothing_else():
    mapper = build_mapper(CONFIG, rngs=nnx.Rngs(0))
    plain = build_mapper(dataclasses.replace(CONFIG, stems=()), rngs=nnx.Rngs(0))
    weights, others = named_weights(mapper), named_weights(plain)
    added = weights.keys() - others.keys()
    assert {name.rpartition(".")[0] for name in added} == {
        f"stems.motion.{part}" for part in ("first", "second", "last")
    }
    for name, weight in others.items():
        np.testing.assert_array_equal(weight, weights[name])
    streams = {
        name: Stream(jax.random.normal(jax.random.key(i), (2, n, w)), jnp.zeros((2, n)))
        for i, (name, n, w) in enumerate(CONFIG.encoders[:2])
    }
    loa = jax.random.normal(jax.random.key(9), (2, 6, 14))
    gradient = jax.jit(jax.grad(lambda m: (m(streams, loa) ** 2).sum()))(mapper)
    assert all(np.abs(named_weights(gradient)[name]).max() > 0 for name in added)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stems": ("motoin",)},
            "stems names motoin, which is not read: this mapper reads cavp",
        ),
        ({"stems": ("cavp", "cavp")}, "stems names cavp twice"),
        ({"kind": "linear_flat"}, "stems go with kind='gpt2', not with 'linear_flat'"),
    ],
    ids=["unknown", "twice", "linear"],
)
def test_a_stem_that_cannot_be_is_refused(change, message):
    with pytest.raises(SettingError, match=message):
        build_mapper(dataclasses.replace(CONFIG, **change), rngs=nnx.Rngs(0))
