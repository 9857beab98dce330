"""TimeChat's visual branch on the hard grade of the Foley world and its labels.

python train.py --config configs/hard_timechat.py --workdir runs/hard/timechat
"""

from dataclasses import replace

from mfm_jax.data.decoded import ClipSpec
from mfm_jax.foley.clips import FoleyClips
from mfm_jax.foley.recipes.timechat import TimeChatRecipe
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=TimeChatRecipe(
            bundle="runs/hard/bundle",
            source=FoleyClips("runs/hard", grade="hard", train=1400, heldout=64),
            spec=replace(ClipSpec.tiny(), cavp_fps=4.0),
        ),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        steps=1500,
        batch=16,
    )
