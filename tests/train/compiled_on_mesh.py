"""A process of `test_mesh.py`: compiles a step of stage 1 for meshes of eight simulated devices.

    python -m tests.train.compiled_on_mesh

Prints the bytes of temporary memory on each device as JSON, by the sizes of the mesh.
"""

import json
from dataclasses import replace

import jax
import numpy as np

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

from mfm_jax.mapper import MapperConfig  # noqa: E402
from mfm_jax.models.gpt2 import GPT2Config  # noqa: E402
from mfm_jax.sharding import Layout, MeshConfig, make_mesh  # noqa: E402
from mfm_jax.train.optimizer import OptimizerConfig, build_optimizer, factors  # noqa: E402
from mfm_jax.train.recipes.mapper import MapperRecipe  # noqa: E402
from mfm_jax.train.step import begin, make_step, trainable  # noqa: E402
from mfm_jax.weights import abstract, initialise  # noqa: E402

CLIPS = 64
NETWORK = replace(MapperConfig.base(), gpt2=GPT2Config(width=256, depth=2, heads=8), loa_width=256)


def temporary(sizes: tuple[int, int, int]) -> int:
    """Bytes on each device of a mesh."""
    recipe = MapperRecipe(network=NETWORK)
    devices = jax.devices()[: int(np.prod(sizes))]
    layout = Layout(make_mesh(MeshConfig(*sizes), devices))
    skeleton = abstract(recipe.build)
    factor = factors((), trainable(skeleton))
    tx = build_optimizer(OptimizerConfig(rate=1e-3), 10, factor)
    state = begin(initialise(recipe.build, 0), tx, factor, ema=None, seed=0, layout=layout)
    batch = {}
    for name, tokens, width in NETWORK.encoders:
        batch[name] = np.zeros((CLIPS, tokens, width), np.float16)
        batch[f"{name}_seconds"] = np.zeros((CLIPS, tokens), np.float32)
    batch["loa"] = np.zeros((CLIPS, NETWORK.loa.tokens, NETWORK.loa_width), np.float32)
    step = make_step(skeleton, recipe.loss, tx, ema=None, layout=layout)
    with jax.set_mesh(layout.mesh):
        compiled = step.lower(state, layout.put_batch(batch, CLIPS)).compile()
    memory = compiled.memory_analysis()
    return memory.temp_size_in_bytes


if __name__ == "__main__":
    meshes = [(1, 1, 1), (8, 1, 1), (1, 8, 1), (2, 2, 2)]
    print(json.dumps({"x".join(map(str, m)): temporary(m) for m in meshes}))
