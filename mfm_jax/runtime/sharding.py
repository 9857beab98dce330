"""Where arrays lie on a mesh of devices: one table from logical axes to the axes of the mesh.

Weights say what their axes mean where they are declared (`axes` beside each weight in
`mfm_jax.layers`), and activations where a compiler left alone would copy them to every device
(`constrain`). Neither knows a mesh: on one device all of this does nothing.
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
"""Of every mesh: copies of the weights, weights cut in pieces, and layers cut in pieces."""

RULES: Mapping[str, tuple[str, ...]] = {
    # Activations. The pieces of `fsdp` see other clips, too: they share weights, not work.
    "batch": ("data", "fsdp"),
    # Weights. What goes into a layer is cut one way and what it becomes the other, so that a layer
    # that widens and the one that narrows again meet without an exchange (Megatron-LM, section 3).
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "conv_in": ("fsdp",),
    "conv_out": ("tensor",),
    "vocab": (),
    "norm": (),
}
"""The axes of the mesh that each logical axis is cut along."""

Axes = tuple[str | None, ...]
"""The logical axes of an array; None is whole everywhere."""


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; their product is the number of devices."""

    data: int | None = None  # all that the others leave, if None
    fsdp: int = 1
    tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `devices`, by default all there are.

    Neighbours on the last axes are neighbours in the machine: these exchange the most. Where the
    devices are slices of TPUs without fast links between them, only `data` reaches over them.

    Raises:
        SettingError: the numbers do not multiply to that of the devices.
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
    """How an array is cut. An axis whose size the devices do not divide stays whole.

    Raises:
        ValueError: an unknown logical axis, one that fits another number of axes, or two that
            would be cut along the same axis of the mesh.
    """
    if len(axes) != len(shape):
        raise ValueError(f"an array of shape {tuple(shape)} does not have the axes {axes}")
    if unknown := [axis for axis in axes if axis is not None and axis not in RULES]:
        raise ValueError(f"no rule for the axis {unknown[0]!r}: add it to RULES")
    wanted = [() if axis is None else RULES[axis] for axis in axes]
    used = [name for names in wanted for name in names]
    if len(set(used)) < len(used):
        raise ValueError(f"two of the axes {axes} are cut along the same axis of the mesh")
    cuts: list[tuple[str, ...] | None] = []
    for names, size in zip(wanted, shape, strict=True):
        pieces = math.prod(mesh.shape[name] for name in names)
        cuts.append(names if pieces > 1 and size % pieces == 0 else None)
    return PartitionSpec(*cuts)


def constrain(x: Array, *axes: str | None) -> Array:
    """`x`, cut like this where a mesh is in use (`jax.set_mesh`); further axes are whole."""
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
    def whole(self) -> NamedSharding:
        """Of what every device has a copy of."""
        return NamedSharding(self.mesh, PartitionSpec())

    def weight(self, axes: Axes, shape: Sequence[int]) -> NamedSharding:
        """Of a weight. Vectors are whole: to gather them costs more than to keep them."""
        if len(shape) < 2:
            return self.whole
        return NamedSharding(self.mesh, spec(axes, shape, self.mesh))

    def batch(self, size: int) -> NamedSharding:
        """Of arrays whose first axis is that of `size` clips.

        Raises:
            SettingError: the devices do not divide it.
        """
        pieces = math.prod(self.mesh.shape[name] for name in RULES["batch"])
        if size % pieces:
            raise SettingError(
                f"batch: {size} clips do not divide over the {pieces} devices of mesh.data x "
                f"mesh.fsdp: use a multiple of {pieces}"
            )
        return NamedSharding(self.mesh, PartitionSpec(RULES["batch"]))

    def share(self, size: int) -> tuple[int, int]:
        """Which of how many equal parts of a batch this process's devices need.

        Processes between whose devices no clips are divided need the same part.

        Raises:
            SettingError: the devices do not divide the batch.
        """
        pieces = self.batch(size).addressable_devices_indices_map((size,)).values()
        rows = {(i.start or 0, size if i.stop is None else i.stop) for (i,) in pieces}  # type: ignore[misc]
        start, stop = min(a for a, _ in rows), max(b for _, b in rows)
        assert sum(b - a for a, b in rows) == stop - start, "a process's clips follow each other"
        return start // (stop - start), size // (stop - start)

    def put_batch(self, batch: Mapping[str, np.ndarray], size: int) -> dict[str, Array]:
        """A batch of `size` clips on the devices, of which this process has its share."""
        place = self.batch(size)
        return {
            name: jax.make_array_from_process_local_data(place, rows, (size, *rows.shape[1:]))
            for name, rows in batch.items()
        }

    def put(self, tree: Any, shardings: Any) -> Any:
        """`tree`, of which every process has all, on the devices."""
        return jax.tree.map(_put, tree, shardings)


def _put(array: Any, sharding: NamedSharding) -> Array:
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    # A copy: where nothing has to move JAX would share the memory, which a step then reuses.
    whole = np.array(array)
    return jax.make_array_from_callback(whole.shape, sharding, lambda piece: whole[piece])


def fetch(tree: Any) -> Any:
    """`tree` as numpy arrays, whole on every process, which must all call this."""

    def one(array: Any) -> np.ndarray:
        if isinstance(array, jax.Array) and not array.is_fully_addressable:
            if array.is_fully_replicated:
                return np.asarray(array)
            return np.asarray(multihost_utils.process_allgather(array, tiled=True))
        return np.asarray(array)

    return jax.tree.map(one, tree)


def named_like(tree: Any, by_name: Callable[[str], Any]) -> Any:
    """`tree` with each leaf replaced by `by_name(key)`, of the key of its last mapping."""

    def one(path: tuple, _) -> Any:
        keys = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        return by_name(keys[-1] if keys else "")

    return jax.tree_util.tree_map_with_path(one, tree)
