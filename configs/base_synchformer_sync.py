"""The sync transformer of the released Synchformer, on clips of your own.

    python train.py --config configs/base_synchformer_sync.py --workdir runs/base/synchformer_sync

The bundle has the released networks (`mfm convert synchformer`), of which the towers stay as they
are. The numbers below are a starting point: they have not been tried on released weights.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.models.synchformer import SynchformerConfig
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.synchformer import ONLY_SYNC, OffsetsRecipe
from mfm_jax.train.step import ComputeConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=OffsetsRecipe(
            bundle="runs/base/bundle",
            source=ClipFiles("clips"),
            network=SynchformerConfig.released(),
            seconds=9.0,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=500, lr_multipliers=ONLY_SYNC),
        steps=20_000,
        batch=64,
        eval_every=1000,
        save_every=1000,
        compute=ComputeConfig(precision="bfloat16"),
    )
