"""A process of `test_mesh.py`: compiles steps of both stages for meshes of eight simulated devices.

    python -m tests.train.compiled_on_mesh BUNDLE

Stage 2 is that of the networks of BUNDLE. Prints the bytes of temporary memory on each device as
JSON, by the stage and the sizes of the mesh.
"""

import json
import sys
from dataclasses import replace

import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

from mfm_jax.mapper import MapperConfig  # noqa: E402
from mfm_jax.models.gpt2 import GPT2Config  # noqa: E402
from mfm_jax.plan.programs import training  # noqa: E402
from mfm_jax.runtime.sharding import Layout, MeshConfig, make_mesh  # noqa: E402
from mfm_jax.train.optimizer import OptimizerConfig  # noqa: E402
from mfm_jax.train.recipe import TrainConfig  # noqa: E402
from mfm_jax.train.recipes.mapper import MapperRecipe  # noqa: E402
from mfm_jax.train.recipes.stage2 import ONLY_MAPPER, Stage2Recipe  # noqa: E402

NETWORK = replace(MapperConfig.base(), gpt2=GPT2Config(width=256, depth=1, heads=8), loa_width=256)
STAGES = {
    "stage 1": TrainConfig(
        MapperRecipe(network=NETWORK), OptimizerConfig(learning_rate=1e-3), 10, 64
    ),
    "stage 2": TrainConfig(
        Stage2Recipe(bundle=sys.argv[1]),
        OptimizerConfig(learning_rate=1e-3, lr_multipliers=ONLY_MAPPER),
        steps=10,
        batch=64,
    ),
}
MESHES = {"stage 1": [(8, 1, 1), (1, 8, 1), (2, 2, 2)], "stage 2": [(2, 2, 2)]}


def temporary(config: TrainConfig, sizes: tuple[int, int, int]) -> int:
    """Bytes on each device of a mesh."""
    devices = jax.devices()[: int(np.prod(sizes))]
    layout = Layout(make_mesh(MeshConfig(*sizes), devices))
    compiled = training(config, layout).traced(layout).lower().compile()
    return compiled.memory_analysis().temp_size_in_bytes


if __name__ == "__main__":
    found = {
        stage: {
            "x".join(map(str, sizes)): temporary(config, sizes)
            for sizes in [(1, 1, 1), *MESHES[stage]]
        }
        for stage, config in STAGES.items()
    }
    print(json.dumps(found))
