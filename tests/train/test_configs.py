"""Every file of `configs/` is what its first lines say."""

import re
import runpy
from pathlib import Path

import pytest

from mfm_jax.cli.toplevel import read_config
from mfm_jax.errors import SettingError
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, parameter_count
from mfm_jax.train.optimizer import lr_multipliers
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.adapter import AdapterRecipe
from mfm_jax.train.recipes.stage2 import Stage2Recipe
from mfm_jax.train.step import trainable

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_trains_something(path):
    config = runpy.run_path(str(path))["get_config"]()
    assert isinstance(config, TrainConfig)
    assert config.batch % config.compute.accumulate == 0
    assert to_json(config)["recipe"]["bundle"]
    commands = re.findall(r"train.py --config (\S+)", path.read_text())
    assert commands == [f"configs/{path.name}"]
    if isinstance(config.recipe, Stage2Recipe | AdapterRecipe):
        return  # its sizes are those of a bundle
    network = abstract(config.recipe.build)
    assert any(
        f is not None
        for f in lr_multipliers(config.optimizer.lr_multipliers, trainable(network)).values()
    )


def test_settings_that_no_bundle_can_have_are_refused_before_the_training(tmp_path):
    config = read_config("tiny_vae", ["recipe.settings.steps=5000"])
    with pytest.raises(SettingError, match=r"settings\.steps is 5000: it must be 1 to 1000"):
        config.recipe.check(tmp_path)


def test_the_base_mapper_is_gpt2_small():
    config = runpy.run_path(str(CONFIGS[0].with_name("base.py")))["get_config"]()
    assert 85e6 < parameter_count(abstract(config.recipe.build)) < 90e6
