"""The VAE of the tiny bundle, on Foley clips.

    python train.py --config configs/tiny_vae.py --workdir runs/tiny/vae

About 12 minutes on one core; `heldout_l1` ends near 0.19 (nats of magnitude).
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.vae import VAERecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=VAERecipe(bundle="runs/tiny/bundle", source=FoleyClips("runs/tiny")),
        optimizer=OptimizerConfig(learning_rate=2e-3, weight_decay=0.0),
        steps=500,
        batch=8,
    )
