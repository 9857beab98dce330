"""A process of `test_hlo.py` that counts what eight simulated devices send each other.

    python -m tests.cost.exchanges

Prints JSON: the bytes that a device sends in each program. `sum` adds up arrays of 64 x 64 numbers
of all devices, `gather` gives each device the whole of one, `pair` adds up between pairs, `loop` a
product of cut matrices five times.
"""

import json

import jax

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

from jax import lax  # noqa: E402
from jax import numpy as jnp  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402

from mfm_jax.cost.hlo import sent_by, work  # noqa: E402
from mfm_jax.runtime.sharding import MeshConfig, make_mesh  # noqa: E402

MESH = make_mesh(MeshConfig(data=4, tensor=2))
WHOLE, PARTS = PartitionSpec(), PartitionSpec(("data", "tensor"))


def shape(spec: PartitionSpec, *sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32, sharding=NamedSharding(MESH, spec))


def sent(function, *arguments, out: PartitionSpec = WHOLE) -> dict[str, int]:
    program = jax.jit(function, out_shardings=NamedSharding(MESH, out))
    return sent_by(work(program.lower(*arguments).compile().as_text()).collectives)


def product(x, w, v):
    """Multiply matrices whose inner axis is sharded in halves."""
    step = lambda c, _: (jnp.tanh(c @ w) @ v, None)  # noqa: E731
    return lax.scan(step, x, None, length=5)[0]


print(
    json.dumps(
        {
            "sum": sent(lambda x: x.sum(0), shape(PARTS, 8, 64, 64)),
            "gather": sent(lambda x: x * 2, shape(PARTS, 64, 64)),
            "pair": sent(
                lambda x: x.sum(0),
                shape(PartitionSpec("tensor"), 2, 64, 64),
            ),
            "loop": sent(
                product,
                shape(PartitionSpec("data"), 32, 64),
                shape(PartitionSpec(None, "tensor"), 64, 128),
                shape(PartitionSpec("tensor"), 128, 64),
                out=PartitionSpec("data"),
            ),
        }
    )
)
