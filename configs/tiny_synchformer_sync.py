"""The sync transformer of the tiny bundle's Synchformer, on Foley clips.

    python train.py --config configs/tiny_synchformer_sync.py --workdir runs/tiny/synchformer_sync

The bundle has the towers of `tiny_synchformer`.
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.synchformer import ONLY_SYNC, OffsetsRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=OffsetsRecipe(bundle="runs/tiny/bundle", source=FoleyClips("runs/tiny")),
        optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=100, lr_multipliers=ONLY_SYNC),
        steps=1000,
        batch=32,
    )
