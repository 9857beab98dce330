"""The features of an adapter of the tiny UNet, before the UNet uses them.

    python train.py --config configs/tiny_sync_start.py --workdir runs/tiny/sync_start

It starts from the bundle that `configs/tiny_stage2.py` leaves and from the features of stage 1. The
workdir becomes that bundle with an adapter that adds nothing yet. `tiny_sync` goes on from there
with `recipe.bundle=runs/tiny/sync_start` and `recipe.init_from=adapter`.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.sync_start import SyncStartRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=SyncStartRecipe(
            bundle="runs/tiny/stage2",
            source=ClipFiles("runs/tiny/mapper/features", licence="Apache-2.0"),
            width=48,
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3, warmup_steps=100),
        steps=3000,
        batch=32,
        eval_every=500,
    )
