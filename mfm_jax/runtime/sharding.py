"""Sharding of arrays on a mesh of devices: one table from logical axes to the axes of the mesh.

A weight's logical axes are declared with the weight (`axes` in `mfm_jax.layers`). Activations name
theirs with `constrain`, at the points where XLA would otherwise copy them to every device. Neither
refers to a mesh, and on one device all of this does nothing.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from mfm_jax.errors import SettingError
from mfm_jax.typing import Array

AXES = ("data", "fsdp", "tensor")
"""Axes of every mesh: data parallelism, sharded weights (FSDP) and tensor parallelism."""

RULES: Mapping[str, tuple[str, ...]] = {
    # Activations. Devices along `fsdp` share the weights, but each computes other clips.
    "batch": ("data", "fsdp"),
    # Weights. The input and output axes of a layer are sharded differently, so that a layer that
    # widens and one after it that narrows need no exchange in between (Megatron-LM, section 3).
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "conv_in": ("fsdp",),
    "conv_out": ("tensor",),
    "vocab": (),
    "norm": (),
}
"""The axes of the mesh that each logical axis is sharded over."""

Axes = tuple[str | None, ...]
"""The logical axes of an array; None is an axis that is not sharded."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; their product is the number of devices."""

    data: int | None = None  # None: all devices that the other axes leave
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Arrange `devices`, by default all of them, in a mesh with the axes `AXES`.

    Neighbours along the last axes exchange the most data, so they are neighbours in the machine.
    Several TPU slices have no fast links between them; there only `data` spans slices.

    Raises:
        SettingError: the product of the axes is not the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    rest = config.fsdp * config.tensor
    if min(config.fsdp, config.tensor, config.data or 1) < 1:
        raise SettingError(f"mesh: every axis needs at least one device, not {config}")
    data = max(1, len(devices) // rest) if config.data is None else config.data
    shape = (data, config.fsdp, config.tensor)
    if math.prod(shape) != len(devices):
        raise SettingError(
            f"mesh: data {data} x fsdp {config.fsdp} x tensor {config.tensor} is "
            f"{math.prod(shape)} devices and there are {len(devices)}: "
            "change mesh.data, mesh.fsdp or mesh.tensor"
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        arranged = mesh_utils.create_device_mesh(
            shape, devices=devices, allow_split_physical_axes=True
        )
    elif data % slices:
        raise SettingError(f"mesh: data {data} does not divide over {slices} slices of devices")
    else:
        arranged = mesh_utils.create_hybrid_device_mesh(
            (data // slices, *shape[1:]), (slices, 1, 1), devices=devices
        )
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def spec(axes: Axes, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Return the partition of an array. An axis that the devices do not divide is not sharded.

    Raises:
        ValueError: an unknown logical axis, a number of axes that is not the array's, or two axes
            that would be sharded over the same axis of the mesh.
    """
    if len(axes) != len(shape):
        raise ValueError(f"an array of shape {tuple(shape)} does not have the axes {axes}")
    if unknown := [axis for axis in axes if axis is not None and axis not in RULES]:
        raise ValueError(f"no rule for the axis {unknown[0]!r}: add it to RULES")
    mesh_axes = [() if axis is None else RULES[axis] for axis in axes]
    used = [name for names in mesh_axes for name in names]
    if len(set(used)) < len(used):
        raise ValueError(f"two of the axes {axes} are sharded over the same axis of the mesh")
    partition: list[tuple[str, ...] | None] = []
    for names, size in zip(mesh_axes, shape, strict=True):
        shards = math.prod(mesh.shape[name] for name in names)
        partition.append(names if shards > 1 and size % shards == 0 else None)
    return PartitionSpec(*partition)


def constrain(x: Array, *axes: str | None) -> Array:
    """Shard `x` by its first logical axes if a mesh is set (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    named = axes + (None,) * (x.ndim - len(axes))
    return jax.lax.with_sharding_constraint(x, spec(named, x.shape, mesh))


@dataclass(frozen=True)
class Layout:
    """The shardings of a run on one mesh."""

    mesh: Mesh

    @property
    def replicated(self) -> NamedSharding:
        """Fully replicated sharding."""
        return NamedSharding(self.mesh, PartitionSpec())

    def weight(self, axes: Axes, shape: Sequence[int]) -> NamedSharding:
        """Return the sharding of a weight. Vectors are replicated: gathering them costs more."""
        if len(shape) < 2 or self.mesh.size == 1:
            return self.replicated
        return NamedSharding(self.mesh, spec(axes, shape, self.mesh))

    def batch(self, size: int) -> NamedSharding:
        """Return the sharding of arrays whose first axis counts the `size` clips of a batch.

        Raises:
            SettingError: `size` is not a multiple of the number of shards.
        """
        shards = math.prod(self.mesh.shape[name] for name in RULES["batch"])
        if size % shards:
            raise SettingError(
                f"batch: {size} clips do not divide over the {shards} devices of mesh.data x "
                f"mesh.fsdp: use a multiple of {shards}"
            )
        return NamedSharding(self.mesh, PartitionSpec(RULES["batch"]))

    def share(self, size: int) -> tuple[int, int]:
        """Return `(index, count)`: which of `count` equal parts of a batch this process reads.

        Processes whose devices compute the same clips read the same part.

        Raises:
            SettingError: `size` is not a multiple of the number of shards.
        """
        shards = self.batch(size).addressable_devices_indices_map((size,)).values()
        rows = {(i.start or 0, size if i.stop is None else i.stop) for (i,) in shards}  # type: ignore[misc]
        start, stop = min(a for a, _ in rows), max(b for _, b in rows)
        assert sum(b - a for a, b in rows) == stop - start, "a process's clips are contiguous"
        return start // (stop - start), size // (stop - start)

    def put_batch(self, batch: Mapping[str, np.ndarray], size: int) -> dict[str, Array]:
        """Put a batch of `size` clips on the devices; `batch` holds this process's share of it."""
        sharding = self.batch(size)
        return {
            name: jax.make_array_from_process_local_data(sharding, rows, (size, *rows.shape[1:]))
            for name, rows in batch.items()
        }

    def constrain(self, tree: Any, shardings: Any) -> Any:
        """Shard the arrays of `tree` inside of a program, where there are several devices.

        To tell a compiler so of every weight on one device takes it a fifth longer, for nothing.
        """
        if self.mesh.size == 1:
            return tree
        return jax.lax.with_sharding_constraint(tree, shardings)

    def put(self, tree: Any, shardings: Any) -> Any:
        """Put `tree` on the devices; every process holds all of it."""
        return jax.tree.map(_put, tree, shardings)


def _put(array: Any, sharding: NamedSharding) -> Array:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    # A copy, because JAX may share the memory of a numpy array, and a step donates its state.
    full = np.array(array)
    return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])


def fetch(tree: Any) -> Any:
    """Return `tree` as full numpy arrays on every process; all processes must call this."""

    def one(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            if array.is_fully_replicated:
                return np.asarray(array)
            return np.asarray(multihost_utils.process_allgather(array, tiled=True))
        return np.asarray(array)

    return jax.tree.map(one, tree)


def copied(tree: Any) -> Any:
    """Return copies of arrays on the same devices. Unlike `jnp.copy` it compiles no program."""

    def one(array: jax.Array) -> jax.Array:
        parts = [
            jax.device_put(shard.data, shard.device, may_alias=False)
            for shard in array.addressable_shards
        ]
        return jax.make_array_from_single_device_arrays(array.shape, array.sharding, parts)

    return jax.tree.map(one, tree)


def named_like(tree: Any, by_name: Callable[[str], Any]) -> Any:
    """Return `tree` with each leaf replaced by `by_name` of the innermost dictionary key."""

    def one(path: tuple, _) -> Any:
        keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return by_name(keys[-1] if keys else "")

    return jax.tree_util.tree_map_with_path(one, tree)
