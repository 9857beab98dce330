"""Stage 1 of the mapper on the hard grade, with a CAVP that sees 12.5 frames a second.

    python train.py --config configs/hard_fast.py --workdir runs/hard_fast/mapper

It differs from `configs/hard.py` only in CAVP's tokens.
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=MapperRecipe(
            bundle="runs/hard_fast/bundle",
            source=FoleyClips("runs/hard_fast", grade="hard", train=1400, heldout=64),
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=30),
        steps=1500,
        batch=32,
    )
