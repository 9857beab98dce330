"""The vocoder of the tiny bundle, on Foley clips.

python train.py --config configs/tiny_vocoder.py --workdir runs/tiny/vocoder
"""

from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.vocoder import VocoderRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=VocoderRecipe(),
        optimizer=OptimizerConfig(rate=3e-3, decay=0.0, b1=0.8, b2=0.99),
        steps=4500,
        batch=4,
    )
