"""Stage 1 of the mapper at the size of the released networks, on features of your own clips.

    mfm extract train.csv -o features/train --bundle runs/base/bundle
    mfm extract heldout.csv -o features/heldout --bundle runs/base/bundle
    python train.py --config configs/base.py --workdir runs/base/mapper

`mfm convert` makes runs/base/bundle from cavp, timechat, audiomae, gpt2 and audioldm2. The numbers
below are a starting point: they have not been tried on released weights.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.mapper import MapperConfig
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.step import ComputeConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=MapperRecipe(
            bundle="runs/base/bundle",
            source=ClipFiles("features"),
            network=MapperConfig.base(),
            init_from="gpt2",
        ),
        optimizer=OptimizerConfig(learning_rate=3e-4, warmup_steps=500),
        steps=15_000,
        batch=256,
        ema_decay=0.999,
        eval_every=1000,
        save_every=1000,
        compute=ComputeConfig(precision="bfloat16"),
    )
