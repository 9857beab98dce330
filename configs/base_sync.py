"""The adapter with which released AudioLDM2 sees when, behind both stages of the mapper.

    python train.py --config configs/base_sync.py --workdir runs/base/sync

It starts from the bundle of stage 2 and reads the features that the mapper was trained on. The
workdir becomes that bundle with the adapter, which `mfm generate` uses. docs/timing.md has what
this does in the miniature. The numbers below are a starting point: they have not been tried on
released weights.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.sync import ONLY_ADAPTER, SyncRecipe
from mfm_jax.train.step import ComputeConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=SyncRecipe(bundle="runs/base/stage2", source=ClipFiles("features")),
        optimizer=OptimizerConfig(
            learning_rate=1e-4, warmup_steps=500, lr_multipliers=ONLY_ADAPTER
        ),
        steps=20_000,
        batch=64,
        ema_decay=0.999,
        eval_every=1000,
        save_every=1000,
        compute=ComputeConfig(precision="bfloat16", remat="blocks"),
    )
