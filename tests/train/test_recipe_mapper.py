"""The mapper's recipe on a small random linear world: LOA is a linear map of the video tokens."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import Source, write_bundle
from mfm_jax.mapper import MapperConfig, build_mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.settings import SettingError
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.weights import abstract, named_weights
from tests.bundles import filled
from train import train

LOA_GRID = LOA(grid=(4, 2), pool=(1, 2))
NETWORK = MapperConfig(
    encoders=(("cavp", 4, 6), ("timechat", 3, 5)),
    loa_width=7,
    loa=LOA_GRID,
    gpt2=GPT2Config(width=32, depth=1, heads=2, positions=32),
    head=True,
)


def world(clips: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Each LOA vector maps the CAVP token of its moment and the mean of the others."""
    fixed, rng = np.random.default_rng(0), np.random.default_rng(seed)
    from_cavp, from_timechat = fixed.standard_normal((6, 7)), fixed.standard_normal((5, 7))
    elements = []
    for _ in range(clips):
        cavp, timechat = rng.standard_normal((4, 6)), rng.standard_normal((3, 5))
        loa = 3 + cavp @ from_cavp + timechat.mean(axis=0) @ from_timechat
        tokens = np.concatenate([np.zeros((1, 7)), np.repeat(loa, 2, axis=0)])
        arrays = {
            "cavp": cavp,
            "cavp_seconds": LOA_GRID.times(),
            "timechat": timechat,
            "timechat_seconds": np.full(3, 0.32),
            "audiomae": tokens,
        }
        elements.append({name: array.astype(np.float32) for name, array in arrays.items()})
    return elements


@dataclass(frozen=True)
class Linear(MapperRecipe):
    """With the world above for clips."""

    network: MapperConfig = NETWORK

    def prepare(self, workdir: Path):
        return tuple([self.read(e) for e in world(n, n)] for n in (256, 32))

    def finish(self, module, workdir, command):
        """Nothing is kept."""


def test_the_mapper_beats_the_mean_and_the_loa_of_another_clip(tmp_path):
    config = TrainConfig(
        recipe=Linear(),
        optimizer=OptimizerConfig(rate=1e-2, warmup=10, decay=0.0),
        steps=150,
        batch=32,
        evaluate=1000,
        save=1000,
    )
    assert train(config, tmp_path, "test") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    before, after = lines[0], lines[-1]
    assert (before["step"], after["step"]) == (0, 150)
    error = after["heldout_loa_error"]
    assert error < 0.5 * after["heldout_loa_error_mean"]
    assert error < 0.5 * after["heldout_loa_error_shuffled"]
    assert error < 0.5 * before["heldout_loa_error"]
    # LOA is standardised by the training set: predicting the mean is off by one deviation.
    assert 0.5 < after["heldout_loa_error_mean"] < 1.5


@pytest.mark.parametrize("start", ["gpt2", "sequence"])
def test_the_mapper_starts_from_a_trained_gpt2(tmp_path, start):
    wrapped = replace(NETWORK, fusion="wrapped", head=False, loa_width=32)
    parts = {
        "gpt2": (NETWORK.gpt2, filled(abstract(partial(GPT2, NETWORK.gpt2)), 1)),
        "sequence": (wrapped, filled(abstract(partial(build_mapper, wrapped)), 2)),
    }
    source = Source("tests", "none")
    write_bundle(tmp_path, {n: (*part, source) for n, part in parts.items()}, dtype=jnp.float16)
    recipe = MapperRecipe(bundle=str(tmp_path), network=NETWORK, start=start)
    module = filled(abstract(recipe.build), 0)
    begun = recipe.begin(module, [{"loa": np.ones((8, 7), np.float32)}])
    trained = parts[start][1] if start == "gpt2" else parts[start][1].gpt2
    for name, weight in named_weights(trained).items():
        found = named_weights(begun.gpt2)[name]
        assert found.dtype == jnp.float32
        np.testing.assert_array_equal(found, weight.astype(jnp.float16).astype(jnp.float32))
    larger = replace(NETWORK, gpt2=replace(NETWORK.gpt2, depth=2))
    with pytest.raises(SettingError, match=r"recipe\.start: "):
        replace(recipe, network=larger).begin(module, [])
