"""A config of `train.py`: a mapper that every mesh of eight devices divides, on noise.

The folders come from the command line; `tests/train/test_mesh.py` makes them.
"""

from mfm_jax.mapper import MapperConfig
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe

SHAPES = {
    "cavp": (4, 16),
    "cavp_seconds": (4,),
    "timechat": (3, 8),
    "timechat_seconds": (3,),
    "audiomae": (129, 16),
}


def get_config() -> TrainConfig:
    network = MapperConfig(
        encoders=(("cavp", 4, 16), ("timechat", 3, 8)),
        loa_width=16,
        loa=LOA(grid=(16, 8), pool=(1, 8)),
        gpt2=GPT2Config(width=32, depth=1, heads=8, positions=32),
        head=True,
    )
    return TrainConfig(
        recipe=MapperRecipe(network=network),
        optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
        steps=8,
        batch=8,
        log_every=1,
        eval_every=1000,
        save_every=4,
    )
