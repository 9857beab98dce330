"""A folder of named arrays: Orbax checkpoints of bounded size, and a checksum of every array.

Orbax does not notice a flipped byte, so `index.json` lists every array and every file with its
SHA-256. Who refers to the folder keeps the checksum of that index.

    index.json       the arrays in the order written, and the files (`mfm_jax.storage.index`)
    part-0/ ...      Orbax checkpoints of at most `PART` bytes, or of one array that is larger
    anything else    files that travel with the arrays, such as a tokenizer
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mfm_jax.errors import first_line, full_disk, system_reason
from mfm_jax.storage.files import flush_tree, write_text
from mfm_jax.storage.index import INDEX, Listed, StoreError, file_size, read_index

PART = 64 << 20  # bytes of arrays in one checkpoint, a few of which are held in memory
# A process reads entire chunks, so small ones let it read little more than its own shard.
CHUNK = 256 << 10
PIECE = 256 << 10  # bytes of a file that are read at once
TILE = 256  # rows and columns that are transposed at once


@dataclass(frozen=True)
class Store:
    """An opened `index.json`; the arrays are read on demand."""

    folder: Path
    arrays: Mapping[str, Listed]
    files: Mapping[str, tuple[int, str]]  # size in bytes and SHA-256 by relative path
    stored: Mapping[str, str]  # the name on the disk of each array

    @classmethod
    def open(cls, folder: Path, rename: Callable[[str], str] | None = None) -> "Store":
        """Read the index.

        Args:
            rename: tells the names of the arrays from those on the disk; the same if not given.

        Raises:
            StoreError: there is none, or it lists what no such folder can hold.
        """
        index = read_index(folder, rename)
        return cls(folder, index.arrays, index.files, index.stored)

    @property
    def size(self) -> int:
        """Bytes on the disk, without the index."""
        return sum(size for size, _ in self.files.values())

    def parts(self) -> dict[int, list[str]]:
        """Return the names in each part, in the order written."""
        names: dict[int, list[str]] = {}
        for name, listed in self.arrays.items():
            names.setdefault(listed.part, []).append(name)
        return names

    def restore(
        self,
        target: Callable[[str, Listed], jax.ShapeDtypeStruct | np.ndarray],
        part: int,
        *,
        together: bool = False,
    ) -> dict[str, Any]:
        """Return the arrays of one part, each with the precision and the sharding of its target.

        A process reads only the chunks of its own shards.

        Args:
            together: whether an array is sharded over several processes, which then must all call
                this.

        Raises:
            StoreError: the part is missing or cannot be read.
        """
        names = {self.stored[name]: name for name in self.parts()[part]}
        targets = {there: target(name, self.arrays[name]) for there, name in names.items()}
        folder = self.folder / part_folder(part)
        if folder.is_symlink():
            raise StoreError(f"{folder.name} is a link: copy what it leads to into its place")
        for name in self.files_in(folder.name):
            # Orbax waits forever for a pipe, and for some files that are cut short.
            if problem := self.damage(name, contents=False):
                raise StoreError(problem)
        options = ocp.options.MultiprocessingOptions() if together else _alone()
        with ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
            try:
                restored = checkpointer.restore(folder.resolve(), targets)
            except Exception as error:
                # Orbax and tensorstore raise many types for missing or damaged files.
                reason = first_line(error).split(" [tensorstore_spec")[0]
                raise StoreError(f"{folder.name} cannot be read: {reason:.500}") from None
        return {name: restored[there] for there, name in names.items()}

    def read_part(self, part: int) -> dict[str, np.ndarray]:
        """Return the arrays of one part as stored, in host memory.

        Raises:
            StoreError: as `restore`.
        """
        return self.restore(lambda _, a: np.empty(a.shape, np.dtype(a.dtype)), part)

    def files_in(self, folder: str) -> list[str]:
        """Return the listed files in `folder`, such as "part-0"."""
        return sorted(name for name in self.files if name.startswith(f"{folder}/"))

    def added(self) -> list[str]:
        """Return the files that the index does not list.

        Hidden files are left out: file managers and network file systems leave them, and nothing
        reads them.
        """
        there = {str(path.relative_to(self.folder)) for path in _files(self.folder)}
        return sorted(n for n in there - self.files.keys() if not Path(n).name.startswith("."))

    def damage(self, name: str, *, contents: bool = True) -> str | None:
        """Return what is wrong with a listed file, if anything.

        Args:
            contents: also compare its contents, not only its size.
        """
        path, (size, sha256) = self.folder / name, self.files[name]
        try:
            if file_size(path) == size and (not contents or digest_file(path) == sha256):
                return None
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({system_reason(error)})"
        return f"{name} was changed"

    def damaged(self, names: Iterable[str]) -> list[str]:
        """Return what is wrong with listed files; empty if nothing is."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return [problem for problem in pool.map(self.damage, names) if problem]

    def damaged_files(self, *, parts: bool = True) -> list[str]:
        """List the files that are missing, changed or added; empty if the folder matches its index.

        Args:
            parts: also check the files of the arrays, not only those beside them.
        """
        names = [name for name in sorted(self.files) if parts or not name.startswith("part-")]
        strange = [f"{name} does not belong there" for name in self.added()]
        return self.damaged(names) + strange

    def damaged_arrays(self) -> list[str]:
        """List the arrays that restore to other values than were written."""
        problems = []
        for part in self.parts():
            try:
                restored = self.read_part(part)
            except StoreError as error:
                problems.append(str(error))
                continue
            for name, array in restored.items():
                if digest_array(array) != self.arrays[name].sha256:
                    problems.append(f"{name} has other values than were written")
        return problems


def part_folder(part: int) -> str:
    """Return the name of the folder of a part."""
    return f"part-{part}"


def write_store(folder: Path, arrays: Iterable[tuple[str, Any]]) -> None:
    """Write a stream of `(name, array)` into the existing `folder`, then the index.

    At most three times `PART` bytes are in memory, or three arrays. Files that are already in the
    folder are listed in the index, too. Everything that the index lists is on the disk before it.
    """
    listed: dict[str, Listed] = {}
    files = _sums(folder, folder)
    flush_tree(folder)
    # One part is written while the next one is made.
    with ThreadPoolExecutor(1) as writer:
        writing: Future | None = None
        for number, part in enumerate(_in_parts(arrays)):
            if writing is not None:
                files |= writing.result()
            writing = writer.submit(_save, folder, part_folder(number), part)
            for name, array in part.items():
                listed[name] = Listed(array.shape, str(array.dtype), number, digest_array(array))
        if writing is not None:
            files |= writing.result()
    index = {"arrays": {name: a._asdict() for name, a in listed.items()}, "files": files}
    write_text(folder / INDEX, json.dumps(index, indent=0) + "\n")


def digest_array(array: np.ndarray) -> str:
    """Return the SHA-256 of the elements in C order and native (little-endian) byte order."""
    return hashlib.sha256(contiguous(array).reshape(-1).view(np.uint8).data).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, read in pieces."""
    return digests_of_file(path, "sha256")[0]


def digests_of_file(path: Path, *kinds: str) -> list[str]:
    """Return digests of a file, by the names of `hashlib`, of the same bytes."""
    sums = [hashlib.new(kind) for kind in kinds]
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            for each in sums:
                each.update(piece)
    return [each.hexdigest() for each in sums]


def contiguous(array: np.ndarray) -> np.ndarray:
    """Return `array` in C order, without a copy if it is already.

    A transposed matrix is copied tile by tile. numpy's own copy misses the cache at every step
    along one axis and takes three times as long.
    """
    if array.flags.c_contiguous:
        return array
    if array.ndim != 2:
        return np.ascontiguousarray(array)
    copy = np.empty(array.shape, array.dtype)
    for i in range(0, array.shape[0], TILE):
        for j in range(0, array.shape[1], TILE):
            copy[i : i + TILE, j : j + TILE] = array[i : i + TILE, j : j + TILE]
    return copy


def _in_parts(arrays: Iterable[tuple[str, Any]]) -> Iterator[dict[str, np.ndarray]]:
    part: dict[str, np.ndarray] = {}
    size = 0
    for name, array in arrays:
        array = contiguous(np.asarray(array))
        if part and size + array.nbytes > PART:
            yield part
            part, size = {}, 0
        part[name] = array
        size += array.nbytes
    if part:
        yield part


def _save(folder: Path, part: str, arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[int, str]]:
    """Write one checkpoint and return the sizes and checksums of its files."""
    # The arrays do not change while they are written, and weights hardly compress.
    numpy = ocp.type_handlers.NumpyHandler(deepcopy_host_arrays=False)
    registry = ocp.type_handlers.create_type_handler_registry((np.ndarray, numpy))
    handler = ocp.PyTreeCheckpointHandler(
        use_compression=False, type_handler_registry=registry, multiprocessing_options=_alone()
    )
    chunks = {name: ocp.SaveArgs(chunk_byte_size=CHUNK) for name in arrays}
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as checkpointer:
        try:
            args = ocp.args.PyTreeSave(dict(arrays), save_args=chunks)
            checkpointer.save((folder / part).resolve(), args=args)
            flush_tree(folder / part)
        except Exception as error:
            # As in reading, these are of many types; a full disk is one of them.
            if reason := full_disk(error):
                raise StoreError(f"{reason}: make room there and start again") from None
            raise StoreError(first_line(error)) from None
    return _sums(folder, folder / part)


def _alone() -> ocp.options.MultiprocessingOptions:
    """Return options with which Orbax does not wait for other processes."""
    index = jax.process_index()
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"alone{index}"
    )


def _sums(folder: Path, inside: Path) -> dict[str, tuple[int, str]]:
    """Return the size and checksum of the files in `inside`, by their path from `folder`."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, digest_file(path))
        for path in _files(inside)
    }


def _files(folder: Path) -> Iterator[Path]:
    """Yield every file of the folder but its index, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / INDEX:
            yield path
