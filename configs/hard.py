"""Stage 1 of the mapper on the hard grade: its own video encoders, the base grade's audio networks.

python train.py --config configs/hard.py --workdir runs/hard/mapper
"""

from dataclasses import replace

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.mapper import MapperConfig
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=MapperRecipe(
            bundle="runs/hard/bundle",
            source=FoleyClips("runs/hard", grade="hard", train=1400, heldout=64),
            network=replace(MapperConfig.tiny(), encoders=(("cavp", 10, 64), ("timechat", 16, 96))),
        ),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=30),
        steps=1500,
        batch=32,
    )
