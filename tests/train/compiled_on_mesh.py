"""The work of a process of `test_mesh.py`: compile steps of both stages for several meshes."""

from dataclasses import replace

import jax
import numpy as np

from mfm_jax.mapper import MapperConfig
from mfm_jax.models.gpt2 import GPT2Config
from mfm_jax.plan.programs import training
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.stage2 import ONLY_MAPPER, Stage2Recipe

NETWORK = replace(MapperConfig.base(), gpt2=GPT2Config(width=256, depth=1, heads=8), loa_width=256)
MESHES = {"stage 1": [(1, 8, 1), (2, 2, 2)], "stage 2": [(2, 2, 2)]}
"""At (2, 2, 2) the memory is small enough only if all three axes share it."""


def temporary_memory(bundle: str) -> dict[str, dict[str, int]]:
    """Return the bytes of temporary memory on each device, by the stage and the sizes of the mesh.

    Stage 2 is that of the networks of `bundle`.
    """
    stages = {
        "stage 1": TrainConfig(
            MapperRecipe(network=NETWORK), OptimizerConfig(learning_rate=1e-3), 10, 64
        ),
        "stage 2": TrainConfig(
            Stage2Recipe(bundle=bundle),
            OptimizerConfig(learning_rate=1e-3, lr_multipliers=ONLY_MAPPER),
            steps=10,
            batch=64,
        ),
    }
    return {
        stage: {
            "x".join(map(str, sizes)): temporary(config, sizes)
            for sizes in [(1, 1, 1), *MESHES[stage]]
        }
        for stage, config in stages.items()
    }


def temporary(config: TrainConfig, sizes: tuple[int, int, int]) -> int:
    """Bytes on each device of a mesh."""
    devices = jax.devices()[: int(np.prod(sizes))]
    layout = Layout(make_mesh(MeshConfig(*sizes), devices))
    compiled = training(config, layout).traced(layout).lower().compile()
    return compiled.memory_analysis().temp_size_in_bytes
