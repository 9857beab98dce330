"""An adapter of the tiny UNet that reads the video, with the UNet and the mapper as they are.

    python train.py --config configs/tiny_sync.py --workdir runs/tiny/sync

It starts from the bundle that `configs/tiny_stage2.py` leaves and from the features of stage 1. The
workdir becomes that bundle with the adapter.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.sync import ONLY_ADAPTER, SyncRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=SyncRecipe(
            bundle="runs/tiny/stage2",
            source=ClipFiles("runs/tiny/mapper/features", licence="Apache-2.0"),
            kind="features",
            width=48,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=50, lr_multipliers=ONLY_ADAPTER),
        steps=5000,
        batch=16,
        eval_every=1000,
    )
