"""Stage 2 of the hard grade's mapper: the diffusion loss through the frozen UNet.

python train.py --config configs/hard_stage2.py --workdir runs/hard/stage2
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.stage2 import ONLY_MAPPER, Stage2Recipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=Stage2Recipe(
            bundle="runs/hard/mapper",
            source=ClipFiles("runs/hard/mapper/features", licence="Apache-2.0"),
        ),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=30, lr_multipliers=ONLY_MAPPER),
        steps=1200,
        batch=16,
    )
