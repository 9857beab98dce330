"""Bytes that each host reads from a store to restore a checkpoint: `python -m benchmarks.restore`.

One process with eight devices saves a state of `MIB` MiB, sharded over all of them, into a server
like that of Google Cloud Storage on this machine. Then 1, 2 and 4 processes with eight devices
between them restore it, each through a proxy that counts. It measures bytes, not time.
"""

import os
import tempfile
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mfm_jax.runtime import distributed
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.checkpoints import Checkpoints
from tests.forked import Forked
from tests.ports import free_port
from tests.store_proxy import Proxy
from tests.store_server import new_bucket, running_server, use

MIB, ARRAYS, DEVICES = 64, 16, 8
HOSTS = (1, 2, 4)


def state(values: bool) -> dict:
    """Return the state with values, or with shapes and shardings alone."""
    sharding = NamedSharding(Mesh(np.array(jax.devices()), ("x",)), PartitionSpec("x"))
    shape = (DEVICES * 128, MIB * 2**20 // ARRAYS // 4 // DEVICES // 128)

    def array(number: int) -> jax.Array | jax.ShapeDtypeStruct:
        if not values:
            return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)
        found = np.random.default_rng(number).standard_normal(shape, np.float32)
        return jax.make_array_from_callback(shape, sharding, lambda index: found[index])

    return {"weights": {f"w{number}": array(number) for number in range(ARRAYS)}}


def save(folder: str) -> None:
    """Write the checkpoint."""
    checkpoints = Checkpoints(StorePath(folder), keep=1)
    checkpoints.save(1, state(True))
    checkpoints.close()


def restore(folder: str, url: str, coordinator: str | None, hosts: int, index: int) -> None:
    """Read it as one of several hosts."""
    use(url)
    if coordinator is not None:
        distributed.start(distributed.Processes(False, coordinator, hosts, index))
    assert Checkpoints(StorePath(folder), keep=1).restore(state(False)) is not None


def main() -> None:
    """Print a row for each number of hosts."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("XLA_FLAGS", "")
    with tempfile.TemporaryDirectory() as name, running_server() as url:
        os.environ["MFM_FILES"] = str(Path(name))
        folder = str(new_bucket(url, "restore") / "checkpoints")
        Forked(save, folder, options={"jax_num_cpu_devices": DEVICES}).result()
        print(f"a state of {MIB} MiB on {DEVICES} devices")
        print("| hosts | MiB read by each | share of the state |\n| --- | --- | --- |")
        for hosts in HOSTS:
            address = f"127.0.0.1:{free_port()}" if hosts > 1 else None
            proxies = [Proxy(url).__enter__() for _ in range(hosts)]
            processes = [
                Forked(
                    restore, folder, proxy.url, address, hosts, index,
                    options={"jax_num_cpu_devices": DEVICES // hosts},
                )
                for index, proxy in enumerate(proxies)
            ]  # fmt: skip
            for process in processes:
                process.result()
            read = [proxy.sent / 2**20 for proxy in proxies]
            shares = ", ".join(f"{each / MIB:.2f}" for each in read)
            print(f"| {hosts} | {', '.join(f'{each:.1f}' for each in read)} | {shares} |")


if __name__ == "__main__":
    main()
