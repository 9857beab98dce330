"""Stage 2 of the tiny bundle's mapper: the diffusion loss through the frozen UNet.

    python train.py --config configs/tiny_stage2.py --workdir runs/tiny/stage2

It starts from the bundle and the features that stage 1 left in runs/tiny/mapper. The workdir
becomes that bundle with the mapper of this stage. About 13 minutes on one core; `heldout_loa_error`
ends near 0.072.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.stage2 import ONLY_MAPPER, Stage2Recipe


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=Stage2Recipe(
            bundle="runs/tiny/mapper",
            source=ClipFiles("runs/tiny/mapper/features", licence="Apache-2.0"),
        ),
        # A third of the learning rate of stage 1, because the mapper is trained already.
        optimizer=OptimizerConfig(learning_rate=5e-4, warmup_steps=30, lr_multipliers=ONLY_MAPPER),
        steps=1200,
        batch=16,
    )
