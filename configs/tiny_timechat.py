"""TimeChat's visual branch of the tiny bundle, on Foley clips and their labels.

python train.py --config configs/tiny_timechat.py --workdir runs/tiny/timechat
"""

from mfm_jax.foley.clips import FoleyClips
from mfm_jax.foley.recipes.timechat import TimeChatRecipe
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=TimeChatRecipe(bundle="runs/tiny/bundle", source=FoleyClips("runs/tiny")),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        steps=1500,
        batch=16,
    )
