"""An adapter for a tiny UNet that was trained on AudioLDM2's grid of LOA alone.

    python train.py --config configs/tiny_sync.py --workdir runs/timing/sync

The workdir becomes a bundle. A mapper for it predicts both grids of LOA
(`recipe.network.loa.fine=[1,8]`).
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.sync import ONLY_ADAPTER, SyncRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=SyncRecipe(
            bundle="runs/timing/backbone",
            source=ClipFiles("runs/tiny/features", licence="Apache-2.0"),
            width=48,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=30, lr_multipliers=ONLY_ADAPTER),
        steps=600,
        batch=16,
        ema_decay=0.99,
    )
