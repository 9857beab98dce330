"""The features of an adapter of released AudioLDM2, before the UNet uses them.

    python train.py --config configs/base_sync_start.py --workdir runs/base/sync_start

It starts from the bundle of stage 2 and reads the features that the mapper was trained on. The
workdir becomes that bundle with an adapter that adds nothing yet. `base_sync` goes on from there
with `recipe.bundle=runs/base/sync_start`, `recipe.kind=features` and `recipe.init_from=adapter`.
The numbers below are a starting point: they have not been tried on released weights.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.sync_start import SyncStartRecipe
from mfm_jax.train.step import ComputeConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=SyncStartRecipe(bundle="runs/base/stage2", source=ClipFiles("features")),
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=500),
        steps=20_000,
        batch=256,
        eval_every=1000,
        save_every=1000,
        compute=ComputeConfig(precision="bfloat16"),
    )
