"""CAVP at 4 frames a second, as in the release, on the hard grade of the Foley world.

python train.py --config configs/hard_cavp.py --workdir runs/hard/cavp
"""

from dataclasses import replace

from mfm_jax.data.decoded import ClipSpec
from mfm_jax.foley.clips import FoleyClips
from mfm_jax.models.cavp import CAVPConfig
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.cavp import CAVPRecipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=CAVPRecipe(
            bundle="runs/hard/bundle",
            source=FoleyClips("runs/hard", grade="hard", train=1400, heldout=64),
            spec=replace(ClipSpec.tiny(), cavp_fps=4.0),
            network=CAVPConfig.tiny_slow(),
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        steps=1400,
        batch=24,
    )
