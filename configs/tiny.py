"""Stage 1 of the tiny bundle's mapper, on Foley clips that are made and encoded on first use.

    python train.py --config configs/tiny.py --workdir runs/tiny/mapper

The workdir becomes a bundle: `mfm generate VIDEO --bundle runs/tiny/mapper -o OUT`. On 2 cores the
clips take about 8 minutes, their features 13 and the training 14. `heldout_loa_error` ends near
0.107. `configs/tiny_stage2.py` continues from there.
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=MapperRecipe(
            source=FoleyClips(train=8192, rates=(25.0, 24.0, 30.0, 25.0, 15.0, 60.0, 25.0, 29.97)),
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=30),
        steps=3000,
        batch=32,
    )
