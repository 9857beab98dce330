"""CAVP at 12.5 frames a second, as in the base grade, on the hard grade of the Foley world.

    python train.py --config configs/hard_fast_cavp.py --workdir runs/hard_fast/cavp

The comparison with `configs/hard_cavp.py` shows what is lost at 4 frames a second.
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.cavp import CAVPRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=CAVPRecipe(
            bundle="runs/hard_fast/bundle",
            source=FoleyClips("runs/hard_fast", grade="hard", train=1400, heldout=64),
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        steps=1400,
        batch=24,
    )
