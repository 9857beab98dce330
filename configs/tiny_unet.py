"""The UNet of the tiny bundle, on features of Foley clips by the bundle's AudioMAE and VAE.

python train.py --config configs/tiny_unet.py --workdir runs/tiny/unet
"""

from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.unet import UNetRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=UNetRecipe(train=2048),
        optimizer=OptimizerConfig(rate=1.5e-3, decay=0.01, warmup=100),
        steps=1500,
        batch=16,
        ema=0.998,
        evaluate=500,
    )
