"""The vocoder of the tiny bundle, on Foley clips.

    python train.py --config configs/tiny_vocoder.py --workdir runs/tiny/vocoder

About 28 minutes on one core; `heldout_mel` ends near 0.16 (nats of magnitude).
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.foley.recipes.vocoder import OscillatorVocoderRecipe
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=OscillatorVocoderRecipe(bundle="runs/tiny/bundle", source=FoleyClips("runs/tiny")),
        # Large steps destroy the oscillators that it starts from before it learns anything better.
        optimizer=OptimizerConfig(learning_rate=5e-5, weight_decay=0.0, warmup_steps=100),
        steps=3000,
        batch=8,
    )
