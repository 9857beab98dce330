"""Write weights from a bundle for PyTorch: safetensors and config files, streamed."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from convert.incoming import KEPT
from convert.safetensors_file import read_header, read_metadata, write
from convert.table import ConversionError, Table
from convert.tensors import Tensor
from mfm_jax.bundle import Bundle
from mfm_jax.storage.files import new_folder
from mfm_jax.storage.index import StoreError
from mfm_jax.storage.store import Store, digest_array, part_folder


@dataclass(frozen=True)
class Outgoing:
    """A component and the files that are written for it."""

    component: str
    table: Table
    configs: Mapping[str, Mapping[str, Any]]  # JSON by file
    weights: Mapping[str, str]  # file by prefix of the tensors' names, which is cut off
    copies: Mapping[str, str] = field(default_factory=dict)  # folder there by folder here


class Reader(Mapping[str, np.ndarray]):
    """The arrays of a component as stored, by name; the last two parts stay in memory."""

    def __init__(self, store: Store, progress: Callable[[int], None]) -> None:
        self.store, self.progress = store, progress
        self.parts: dict[int, dict[str, np.ndarray]] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        part = self.store.arrays[name].part
        if part not in self.parts:
            while len(self.parts) > 1:
                self.parts.pop(next(iter(self.parts)))
            self.parts[part] = self._checked(part)
            self.progress(sum(array.nbytes for array in self.parts[part].values()))
        return self.parts[part][name]

    def _checked(self, part: int) -> dict[str, np.ndarray]:
        if problems := self.store.damaged(self.store.files_in(part_folder(part))):
            raise StoreError(f"{self.store.folder} is damaged: {'; '.join(problems)}")
        arrays = self.store.read_part(part)
        for name, array in arrays.items():
            if digest_array(array) != self.store.arrays[name].sha256:
                raise StoreError(f"{self.store.folder}: {name} has other values than were written")
        return arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self.store.arrays)

    def __len__(self) -> int:
        return len(self.store.arrays)


def to_torch(
    bundle: Bundle,
    parts: list[Outgoing],
    target: Path,
    progress: Callable[[int], None] = lambda size: None,
) -> None:
    """Write the new folder `target`, atomically.

    Raises:
        BundleError: the bundle lacks a component.
        StoreError: its weights cannot be read, or have changed since they were written.
        ConversionError: `target` is there already and is not an empty folder.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConversionError(f"{target} exists: choose another output folder")
    with new_folder(target) as folder:
        for part in parts:
            # The arrays are compared with their own checksums when they are read.
            if problems := bundle.store(part.component).damaged_files(parts=False):
                raise StoreError(f"{part.component} is damaged: {'; '.join(problems)}")
            for name, config in part.configs.items():
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps(config, indent=2) + "\n")
            for ours, theirs in part.copies.items():
                if (came := bundle.store(part.component).folder / ours).is_dir():
                    shutil.copytree(came, folder / theirs, dirs_exist_ok=True)
            for prefix, name in part.weights.items():
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                _write_weights(bundle.store(part.component), part, prefix, file, progress)


def _write_weights(
    store: Store, part: Outgoing, prefix: str, file: Path, progress: Callable[[int], None]
) -> None:
    """Write the tensors whose longest prefix in `part.weights` is `prefix`."""
    longer = tuple(p for p in part.weights if p.startswith(prefix) and p != prefix)

    def here(key: str) -> bool:
        return key.startswith(prefix) and not (longer and key.startswith(longer))

    came_in, tied = kept(store)
    extra = {key: tensor for key, tensor in came_in.items() if here(key)}
    copies = {row.copy for row in part.table.tied}
    left_out = set() if tied is None else copies - set(tied)

    def wanted(key: str) -> bool:
        return here(key) and key not in extra and key not in left_out

    # Nothing is allocated: all elements of an array share one address.
    nothing = {
        name: np.broadcast_to(np.zeros((), listed.dtype), listed.shape)
        for name, listed in store.arrays.items()
    }
    specs = {
        key.removeprefix(prefix): (array.dtype, array.shape)
        for key, array in part.table.to_theirs(nothing, wanted=wanted)
    }
    specs |= {
        key.removeprefix(prefix): (tensor.dtype, tensor.shape) for key, tensor in extra.items()
    }

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        order = {name: listed.part for name, listed in store.arrays.items()}
        reader = Reader(store, progress)
        written = part.table.to_theirs(reader, order=order.__getitem__, wanted=wanted)
        yield from ((key.removeprefix(prefix), array) for key, array in written)
        yield from ((key.removeprefix(prefix), tensor.read()) for key, tensor in extra.items())

    write(file, specs, arrays(), {"format": "pt"})


def kept(store: Store) -> tuple[dict[str, Tensor], list[str] | None]:
    """Return the tensors kept from the source, and the names of its tied copies, if known."""
    file = store.folder / KEPT
    if not file.exists():
        return {}, None
    return read_header(file), json.loads(read_metadata(file)["tied"])
