"""The towers of the tiny bundle's Synchformer, on Foley clips.

    python train.py --config configs/tiny_synchformer.py --workdir runs/tiny/synchformer

About 10 minutes on one core; `heldout_hits` ends near 0.18, and chance is 0.01.
`tiny_synchformer_sync` goes on from there.
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.synchformer import SegmentsRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=SegmentsRecipe(bundle="runs/tiny/bundle", source=FoleyClips("runs/tiny")),
        optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=100),
        steps=700,
        batch=32,
    )
