"""CAVP of the tiny bundle, on Foley clips.

python train.py --config configs/tiny_cavp.py --workdir runs/tiny/cavp
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.cavp import CAVPRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=CAVPRecipe(bundle="runs/tiny/bundle", source=FoleyClips("runs/tiny")),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        steps=1400,
        batch=24,
    )
