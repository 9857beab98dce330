"""The adapter with which released AudioLDM2 hears when, between `mfm convert` and `base.py`.

    mfm extract train.csv -o features/train --bundle runs/base/bundle
    mfm extract heldout.csv -o features/heldout --bundle runs/base/bundle
    python train.py --config configs/base_sync.py --workdir runs/base/sync

It learns from sound alone. The mapper is trained after it, with `--set recipe.bundle=runs/base/sync
recipe.network.loa.fine=[1,8]`. docs/timing.md has what this does in the miniature. The numbers
below are a starting point: they have not been tried on released weights.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.sync import ONLY_ADAPTER, SyncRecipe
from mfm_jax.train.step import ComputeConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=SyncRecipe(bundle="runs/base/bundle", source=ClipFiles("features")),
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
