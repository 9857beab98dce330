"""The listener, which recognises the material of each contact, on Foley clips and their labels.

python train.py --config configs/tiny_listener.py --workdir runs/tiny/listener
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.foley.recipes.listener import ListenerRecipe
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=ListenerRecipe(bundle="runs/tiny/bundle", source=FoleyClips("runs/tiny")),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        steps=2400,
        batch=32,
    )
