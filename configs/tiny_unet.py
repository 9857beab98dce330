"""The UNet of the tiny bundle, on features of Foley clips by the bundle's AudioMAE and VAE.

python train.py --config configs/tiny_unet.py --workdir runs/tiny/unet
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.unet import UNetRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        # The miniature uses the first grid. The others are there for comparisons.
        recipe=UNetRecipe(
            bundle="runs/tiny/bundle",
            source=FoleyClips("runs/tiny"),
            pools=((1, 8), (2, 2), (4, 4), (8, 8)),
            pool_probs=(0.7, 0.12, 0.1, 0.08),
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, weight_decay=0.01, warmup_steps=100),
        steps=3600,
        batch=16,
        ema_decay=0.998,
        eval_every=500,
    )
