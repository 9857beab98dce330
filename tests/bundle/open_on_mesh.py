"""A process of `test_bundle_mesh.py` that opens a GPT-2 with large axes sharded over all devices.

    python -m tests.bundle.open_on_mesh BUNDLE DEVICES [PORT PROCESSES INDEX]

Prints the bytes that it read, with and without the comparison with checksums, and a checksum of the
shards that it holds, as JSON; or what is wrong with the bundle.
"""

import json
import logging
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def bytes_read() -> int:
    """Return the bytes that this process has read, from the disk or the page cache."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def main(bundle: str, devices: str, port: str = "", processes: str = "1", index: str = "0") -> None:
    logging.getLogger("absl").setLevel(logging.ERROR)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    if port:
        jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
    from mfm_jax.bundle import Bundle, BundleError
    from mfm_jax.runtime.sharding import Axes
    from mfm_jax.storage.weights import named_weights

    count = jax.device_count()
    mesh = jax.make_mesh((count,), ("fsdp",), axis_types=(AxisType.Auto,))

    def sharding(axes: Axes, shape: tuple[int, ...]) -> NamedSharding:
        split = len(shape) > 1 and shape[-1] % count == 0
        spec = PartitionSpec(*[None] * (len(shape) - 1), "fsdp") if split else PartitionSpec()
        return NamedSharding(mesh, spec)

    opened = Bundle.open(Path(bundle))
    before = bytes_read()
    try:
        network = opened.load("gpt2", sharding=sharding)
    except BundleError as error:
        print(json.dumps({"refused": str(error)}))
        return
    verified = bytes_read() - before
    network = opened.load("gpt2", sharding=sharding, verify=False)
    read = bytes_read() - before - verified
    weights = named_weights(network)
    shards = {
        name: [np.asarray(s.data, np.float64).sum() for s in array.addressable_shards]
        for name, array in weights.items()
    }
    held = sum(s.data.nbytes for array in weights.values() for s in array.addressable_shards)
    split = sum(not array.sharding.is_fully_replicated for array in weights.values())
    found = {"read": read, "verified": verified, "held": held, "split": split, "sums": shards}
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
