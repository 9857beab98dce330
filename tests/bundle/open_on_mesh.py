"""The work of processes of `test_bundle_mesh.py`: open a GPT-2 sharded over all devices."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mfm_jax.bundle import Bundle, BundleError
from mfm_jax.runtime.sharding import Axes
from mfm_jax.storage.weights import named_weights


def bytes_read() -> int:
    """Return the bytes that this process has read, from the disk or the page cache."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def read(bundle: Path, port: int = 0, processes: int = 1, index: int = 0) -> dict[str, Any]:
    """Return the bytes that were read and checksums of the shards that are held.

    The bytes are those with and without the comparison with checksums. Returns what is wrong with
    the bundle instead, if it cannot be opened.
    """
    if processes > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", processes, index)
    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("fsdp",), axis_types=(AxisType.Auto,))

    def sharding(axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        split = len(shape) > 1 and shape[-1] % count == 0
        spec = PartitionSpec(*[None] * (len(shape) - 1), "fsdp") if split else PartitionSpec()
        return NamedSharding(mesh, spec)

    opened = Bundle.open(bundle)
    before = bytes_read()
    try:
        network = opened.load("gpt2", sharding=sharding)
    except BundleError as error:
        return {"refused": str(error)}
    verified = bytes_read() - before
    network = opened.load("gpt2", sharding=sharding, verify=False)
    without = bytes_read() - before - verified
    weights = named_weights(network)
    shards = {
        name: [np.asarray(s.data, np.float64).sum() for s in array.addressable_shards]
        for name, array in weights.items()
    }
    held = sum(s.data.nbytes for array in weights.values() for s in array.addressable_shards)
    split = sum(not array.sharding.is_fully_replicated for array in weights.values())
    return {"read": without, "verified": verified, "held": held, "split": split, "sums": shards}
