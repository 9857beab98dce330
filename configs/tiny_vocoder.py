"""The vocoder of the tiny bundle, on Foley clips.

python train.py --config configs/tiny_vocoder.py --workdir runs/tiny/vocoder

About 28 minutes on one core; `heldout_mel` ends near 0.16 (nats of magnitude).
"""

from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.vocoder import VocoderRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=VocoderRecipe(),
        # Small steps: large ones undo the oscillators before they teach anything better.
        optimizer=OptimizerConfig(rate=5e-5, decay=0.0, warmup=100),
        steps=3000,
        batch=8,
    )
