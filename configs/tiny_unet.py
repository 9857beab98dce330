"""The UNet of the tiny bundle, on features of Foley clips by the bundle's AudioMAE and VAE.

python train.py --config configs/tiny_unet.py --workdir runs/tiny/unet
"""

from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.unet import UNetRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        # The finest grid is the miniature's own; the others are there to be compared.
        recipe=UNetRecipe(pools=((1, 8), (2, 2), (4, 4), (8, 8)), chances=(0.7, 0.12, 0.1, 0.08)),
        optimizer=OptimizerConfig(rate=1.5e-3, decay=0.01, warmup=100),
        steps=3600,
        batch=16,
        ema=0.998,
        evaluate=500,
    )
