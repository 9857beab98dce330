"""Write weights from a bundle for PyTorch: safetensors and config files, streamed."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
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
    """A component and the files that are written for it; several may go into one file."""

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
            for name in part.weights.values():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
        for name in dict.fromkeys(name for part in parts for name in part.weights.values()):
            pieces = [
                _Piece(bundle.store(part.component), part, prefix)
                for part in parts
                for prefix, its in part.weights.items()
                if its == name
            ]
            specs = {key: spec for piece in pieces for key, spec in piece.specs().items()}
            arrays = chain.from_iterable(piece.arrays(progress) for piece in pieces)
            write(folder / name, specs, arrays, {"format": "pt"})


class _Piece:
    """The tensors of a component whose longest prefix in `part.weights` is `prefix`."""

    def __init__(self, store: Store, part: Outgoing, prefix: str) -> None:
        self.store, self.part, self.prefix = store, part, prefix
        self.longer = tuple(p for p in part.weights if p.startswith(prefix) and p != prefix)
        came_in, tied = kept(store)
        self.extra = {key: tensor for key, tensor in came_in.items() if self._here(key)}
        copies = {row.copy for row in part.table.tied}
        self.left_out = set() if tied is None else copies - set(tied)

    def _here(self, key: str) -> bool:
        return key.startswith(self.prefix) and not (self.longer and key.startswith(self.longer))

    def _wanted(self, key: str) -> bool:
        return self._here(key) and key not in self.extra and key not in self.left_out

    def specs(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        """Return dtype and shape of every tensor by its name in the file."""
        # Nothing is allocated: all elements of an array share one address.
        nothing = {
            name: np.broadcast_to(np.zeros((), listed.dtype), listed.shape)
            for name, listed in self.store.arrays.items()
        }
        written = self.part.table.to_theirs(nothing, wanted=self._wanted)
        specs = {key: (array.dtype, array.shape) for key, array in written}
        specs |= {key: (tensor.dtype, tensor.shape) for key, tensor in self.extra.items()}
        return {key.removeprefix(self.prefix): spec for key, spec in specs.items()}

    def arrays(self, progress: Callable[[int], None]) -> Iterator[tuple[str, np.ndarray]]:
        """Yield the tensors by their names in the file."""
        order = {name: listed.part for name, listed in self.store.arrays.items()}
        reader = Reader(self.store, progress)
        table = self.part.table
        written = table.to_theirs(reader, order=order.__getitem__, wanted=self._wanted)
        yield from ((key.removeprefix(self.prefix), array) for key, array in written)
        yield from ((key.removeprefix(self.prefix), t.read()) for key, t in self.extra.items())


def kept(store: Store) -> tuple[dict[str, Tensor], list[str] | None]:
    """Return the tensors kept from the source, and the names of its tied copies, if known."""
    file = store.folder / KEPT
    if not file.exists():
        return {}, None
    return read_header(file), json.loads(read_metadata(file)["tied"])
