"""Stage 2 after `configs/base.py`: the diffusion loss, with LoRA of rank 8 on the UNet.

    python train.py --config configs/base_stage2.py --workdir runs/base/stage2

The numbers below are a starting point: they have not been tried on released weights.
"""

from mfm_jax.data.sources import ClipFiles
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.stage2 import WITH_LORA, Stage2Recipe
from mfm_jax.train.step import ComputeConfig


def get_config() -> TrainConfig:
    return TrainConfig(
        recipe=Stage2Recipe(bundle="runs/base/mapper", source=ClipFiles("features"), lora_rank=8),
        optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=500, lr_multipliers=WITH_LORA),
        steps=5_000,
        batch=64,
        ema_decay=0.999,
        eval_every=500,
        save_every=500,
        compute=ComputeConfig(precision="bfloat16", remat="blocks"),
    )
