"""Read files of `torch.save` without torch, and without running code in them.

Such a file has a pickle, which `convert.pickle_machine` reads as data. Only the functions that
torch and numpy write for tensors and arrays have a meaning here, so weights can be read from a
checkpoint with other objects.

Two of the three layouts (torch/serialization.py) are read: zip files (since torch 1.6), and plain
files, in which the contents of the storages follow the pickle (since torch 0.2). Weights that were
saved as numpy's arrays are read as well, from these, from a pickle alone and from `.npz`.
"""

import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from convert import numpy_arrays
from convert.numpy_arrays import PickledArray, stored_array
from convert.pickle_machine import CUT, Global, Unknown, unpickled
from convert.tensors import (
    Crc,
    Deflated,
    Held,
    Problem,
    Tensor,
    about,
    checked_name,
    checked_shape,
    extent,
    listed,
)

ZIP, PLAIN = b"PK", b"\x80"  # first bytes of the two layouts
PICKLE = 512 << 20  # bytes at most of a pickle, which may hold arrays
# Bytes at most of a tensor that repeats the elements of its storage, as expanded masks do.
REPEATED = 256 << 20
BYTE = np.dtype(np.uint8)
BIG_ENDIAN = "has big-endian numbers: save it again on a little-endian machine"
ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
ENTRIES = ("state_dict", "model", "model_state_dict", "params", "module", "non_ema", "shadow")
"""Where trainers put the weights, the first that has some."""
AVERAGES = ("ema", "swa", "average", "averaged", "averages", "polyak", "shadow")
"""Words that say that weights are averaged. (`exp_avg` is what optimizers call their moments.)"""
WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a plain file

DTYPES = {
    f"torch.{name}": np.dtype(dtype)
    for name, dtype in {
        "float64": np.float64,
        "float32": np.float32,
        "float16": np.float16,
        "bfloat16": ml_dtypes.bfloat16,
        "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
        "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
        "float8_e5m2": ml_dtypes.float8_e5m2,
        "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
        "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
        "int64": np.int64,
        "int32": np.int32,
        "int16": np.int16,
        "int8": np.int8,
        "uint64": np.uint64,
        "uint32": np.uint32,
        "uint16": np.uint16,
        "uint8": np.uint8,
        "bool": np.bool_,
        "complex128": np.complex128,
        "complex64": np.complex64,
    }.items()
}
STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}


@dataclass(frozen=True)
class Storage:
    """A block of bytes that tensors are views of."""

    contents: Tensor  # of uint8
    dtype: np.dtype


@dataclass(frozen=True)
class Saved:
    """The weights in a file."""

    tensors: dict[str, Tensor]
    averaged: dict[str, Tensor] = field(default_factory=dict)  # averages (EMA) of the weights
    averaged_in: str = ""  # the entry with the averages
    unnamed: str = ""  # an entry with averages that have no names, if any


def saved(path: Path) -> Saved:
    """Return the weights in a file by name, from one of the usual entries or its top level.

    Other entries, such as the number of epochs, are left out.

    Raises:
        SourceError: the file cannot be read, or has no weights.
    """
    content = read(path)
    with about(path):
        if not isinstance(content, dict):
            made = getattr(content, "path", type(content).__name__)
            raise Problem(f"holds no table of tensors but a {made}: save its state_dict() instead")
        averages = _averages(content)
        tables = {k: table for k, v in averages.items() if (table := _table(v)) is not None}
        unnamed = next((k for k, v in averages.items() if k not in tables and _lists(v)), "")
        averaged_in = max(tables, key=lambda key: len(tables[key]), default="")
        averaged = _tensors(path, tables[averaged_in]) if averaged_in else {}
        table = _table({k: v for k, v in content.items() if not _is_averages(k, v)})
        if table is None and averaged:
            return Saved({}, averaged, averaged_in, unnamed)
        if table is None:
            keys = listed(key for key in content if isinstance(key, str)) or "none"
            where = ", ".join(ENTRIES[:-1])
            raise Problem(
                f"holds no table of tensors, nor in {where} or {ENTRIES[-1]}; its keys: {keys}"
            )
        return Saved(_tensors(path, table), averaged, averaged_in, unnamed)


def _averages(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the entries that say that they are averages, also those in others, by their names."""
    found: dict[int, tuple[str, Any]] = {}
    looked_into: set[int] = set()  # a file may have one table in many places

    def look(inside: Mapping[Any, Any], front: str, depth: int) -> None:
        for key, value in inside.items():
            new = isinstance(key, str) and isinstance(value, dict) and id(value) not in looked_into
            if _is_averages(key, value):
                found.setdefault(id(value), (front + key, value))
            elif new and depth > 1:
                looked_into.add(id(value))
                look(value, f"{front}{key}.", depth - 1)

    look(content, "", 3)
    return dict(found.values())


def _is_averages(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, dict | list) and is_average(key)


def is_average(key: str) -> bool:
    """Return whether the name of an entry or a file, or a part of one, says averaged weights."""
    words = [word.lower() for word in WORD.findall(key)]
    before = ("", *words)
    return any(
        w in AVERAGES and b not in ("no", "non") for b, w in zip(before, words, strict=False)
    )


def _table(content: Any, depth: int = 3) -> Mapping[Any, Any] | None:
    """Return the table of weights in an object: in one of the usual entries, or it itself."""
    if not isinstance(content, dict) or not depth:
        return None
    for entry in ENTRIES:
        if (table := _table(content.get(entry), depth - 1)) is not None:
            return table
    return content if holds_weights(content) else None


def _lists(content: Any) -> bool:
    """Return whether there are lists of tensors in an object, as some averages are saved."""
    lists = content.values() if isinstance(content, dict) else [content]
    return any(
        isinstance(values, list) and any(isinstance(value, Tensor) for value in values)
        for values in lists
    )


def holds_weights(content: Any) -> bool:
    """Return whether an object is a table of tensors or of numpy's arrays of numbers."""
    return isinstance(content, dict) and any(
        isinstance(v, Tensor) or (isinstance(v, PickledArray) and v.array is not None)
        for v in content.values()
    )


def holds_arrays(content: Any) -> bool:
    """Return whether a pickle alone is a table of numpy's arrays, or has one in a usual entry."""
    table = _table(content)
    return table is not None and any(isinstance(v, PickledArray) for v in table.values())


def _tensors(path: Path, table: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Return the tensors of a table by name; the arrays if there are only arrays."""
    lost = [
        f"{key} ({value.path})"
        for key, value in table.items()
        if isinstance(key, str)
        and isinstance(value, Unknown)
        and value.path.startswith(("torch._utils.", "torch._tensor."))
    ]
    if lost:
        raise Problem(f"has tensors of kinds that cannot be read: {listed(lost)}")
    tensors = {checked_name(key): v for key, v in table.items() if isinstance(v, Tensor)}
    if tensors:
        return tensors
    arrays = {key: v.array for key, v in table.items() if isinstance(v, PickledArray)}
    return {checked_name(key): Held(path, v) for key, v in arrays.items() if v is not None}


def read(path: Path) -> Any:
    """Return the saved object as None, bools, numbers, texts, bytes, tuples, lists and dicts.

    Tensors and parameters become `Tensor`s, everything else an `Unknown` or a `Global`. Dict
    entries are left out if the key is not None, text, bytes or a small integer.

    Raises:
        SourceError: the file cannot be read, is not from `torch.save`, or was made to run code.
    """
    with about(path), path.open("rb") as file:
        start = file.read(1024)
        file.seek(0)
        if start.startswith(ZIP):
            return _read_zip(path, file)
        if start.startswith(PLAIN):
            return _read_plain(path, file)
        raise Problem(
            what_else(start) or "is no checkpoint: neither a safetensors file nor one of torch.save"
        )


def what_else(start: bytes) -> str | None:
    """Return what a file that begins with `start` is instead of a checkpoint, if recognised."""
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start:
        return "is empty: get it again"
    if text.startswith(b"<") and any(tag in text for tag in (b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a checkpoint: download it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer, not the file itself: run git lfs pull"
    for magic, name in ARCHIVES.items():
        if start.startswith(magic):
            return f"is compressed with {name}: unpack it and give the file inside"
    if start[257:262] == b"ustar":
        if start[:100].rstrip(b"\0") in (b"sys_info", b"pickle", b"tensors", b"storages"):
            return "was saved by a PyTorch before 0.2: load it with torch.load and save it again"
        return "is a tar archive: unpack it and give the file inside"
    return None


# Zip files


@dataclass(frozen=True)
class Archive:
    """A zip file. Nothing is extracted, so names of entries can do no harm."""

    path: Path
    file: BinaryIO
    entries: Mapping[str, zipfile.ZipInfo]
    folder: str = ""  # of all entries, with its slash
    found: dict[str, Tensor] = field(default_factory=dict)

    def entry(self, name: str) -> Tensor:
        """Return the bytes of an entry, located by its local header."""
        if name not in self.found:
            if self.folder + name not in self.entries:
                raise Problem(f"lacks its entry {name}: it is damaged")
            self.found[name] = self._located(self.entries[self.folder + name])
        return self.found[name]

    def _located(self, entry: zipfile.ZipInfo) -> Tensor:
        if entry.flag_bits & 1:
            raise Problem("is an encrypted zip archive: unpack it and give the file inside")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Problem("is compressed in an unusual way: load it with torch.load, save it again")
        size = self.file.seek(0, os.SEEK_END)
        self.file.seek(min(max(entry.header_offset, 0), size))
        header = self.file.read(30)
        if len(header) < 30 or not header.startswith(b"PK\x03\x04"):
            raise Problem(CUT)
        start = entry.header_offset + 30 + sum(struct.unpack("<26xHH", header))
        stored = entry.compress_type == zipfile.ZIP_STORED
        differ = entry.file_size != entry.compress_size
        if start + entry.compress_size > size or (stored and differ):
            raise Problem(CUT)
        stream = None if stored else Deflated(start, entry.compress_size)
        shape = checked_shape((entry.file_size,), BYTE)
        offset = start if stored else 0
        crc = Crc(entry.filename, entry.CRC, offset, entry.file_size) if self.summed else None
        return Tensor(self.path, offset, BYTE, shape, deflated=stream, crc=crc)

    @property
    def summed(self) -> bool:
        """True if the archive has CRCs: torch can leave them out, and then writes zeros."""
        return any(entry.CRC for entry in self.entries.values())

    def load(self, saved: Any) -> Storage:
        """Return the storage of a persistent id."""
        dtype, key, size = _storage(saved)
        contents = self.entry(f"data/{key}")
        if size > contents.nbytes:
            raise Problem(f"has less than it says in its entry data/{key}: it is damaged")
        return Storage(contents, dtype)


def _read_zip(path: Path, file: BinaryIO) -> Any:
    try:
        infos = zipfile.ZipFile(file).infolist()
    except Exception:
        # A damaged table of contents causes exceptions of many types.
        raise Problem(CUT) from None
    entries = {info.filename: info for info in infos}
    if entries and all(name.endswith(".npy") for name in entries) and len(entries) == len(infos):
        arrays = Archive(path, file, entries)
        return {n.removesuffix(".npy"): stored_array(arrays.entry(n)) for n in entries}
    pickles = [n for n in entries if n.split("/")[-1] == "data.pkl" and n.count("/") < 2]
    if len(pickles) != 1 or len(entries) != len(infos):
        raise Problem("is a zip archive, but none of torch.save: unpack it, give the file inside")
    archive = Archive(path, file, entries, pickles[0].removesuffix("data.pkl"))
    if f"{archive.folder}constants.pkl" in entries:
        raise Problem("is a TorchScript program: load it with torch.jit and save its state_dict()")
    if f"{archive.folder}byteorder" in entries:
        order = archive.entry("byteorder")
        if order.nbytes > 16 or order.read().tobytes() != b"little":
            raise Problem(BIG_ENDIAN)
    data = archive.entry("data.pkl")
    if data.nbytes > PICKLE:
        raise Problem(f"has a pickle of {data.nbytes} bytes, at most {PICKLE} are read")
    return unpickled(io.BytesIO(data.read().data), archive.load, FUNCTIONS)


# Plain files


class BoundedFile:
    """A file from its position on, limited to the size of a pickle."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.position = file, file.tell()
        self.end, self.most = file.seek(0, os.SEEK_END), self.position + PICKLE
        file.seek(self.position)

    def read(self, size: int) -> bytes:
        """Read the next `size` bytes."""
        self._go(size)
        return self.file.read(size)

    def readline(self) -> bytes:
        """Read the next line with its line break."""
        line = self.file.readline(PICKLE)
        self._go(len(line))
        return line

    def tell(self) -> int:
        """Return the position in the file."""
        return self.position

    def _go(self, size: int) -> None:
        self.position += size
        if self.position > self.end:
            raise Problem(CUT)
        if self.position > self.most:
            raise Problem(f"has a pickle of more than {PICKLE} bytes, more than are read")


def _read_plain(path: Path, file: BinaryIO) -> Any:
    """Read a plain file. Its pickle is read twice, as the file lists the storages behind it."""

    def next_pickle(load: Callable[[Any], Any] | None = None) -> Any:
        return unpickled(BoundedFile(file), load, FUNCTIONS)

    first = next_pickle()
    if holds_arrays(first):
        return first
    if first != MAGIC:
        raise Problem("is a pickle, but none of torch.save: load it and save it with torch.save")
    if next_pickle() != PROTOCOL:
        raise Problem("is of an unknown version: load it with torch.load and save it again")
    system = next_pickle()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Problem(BIG_ENDIAN)
    noted: dict[str, Storage] = {}

    def note(saved: Any) -> Storage:
        dtype, key, size = _storage(saved)
        storage = Storage(Tensor(path, 0, BYTE, (size,)), dtype)
        if noted.setdefault(key, storage) != storage:
            raise Problem(f"says two things of its storage {key}: it is damaged")
        return storage

    start = file.tell()
    next_pickle(note)
    located = _located(file, noted, next_pickle())
    file.seek(start)
    return next_pickle(lambda saved: located[_storage(saved)[1]])


def _located(file: BinaryIO, storages: Mapping[str, Storage], keys: Any) -> dict[str, Storage]:
    """Locate the storages: in the order of `keys`, each after its number of elements."""
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise Problem("does not list its storages: it is damaged")
    if len(keys) != len(storages) or set(keys) != storages.keys():
        raise Problem("lists other storages than its tensors have: it is damaged")
    located, offset = {}, file.tell()
    end = file.seek(0, os.SEEK_END)
    for key in keys:
        storage = storages[key]
        size = storage.contents.nbytes
        if offset + 8 + size > end:
            raise Problem("is cut short: get it again")
        file.seek(offset)
        if struct.unpack("<q", file.read(8))[0] * storage.dtype.itemsize != size:
            raise Problem(f"has another size than it says of its storage {key}: it is damaged")
        located[key] = replace(storage, contents=replace(storage.contents, offset=offset + 8))
        offset += 8 + size
    return located


# The meaning of the names in a pickle


def _storage(saved: Any) -> tuple[np.dtype, str, int]:
    """Return element type, key and size in bytes of the storage of a persistent id."""
    match saved:
        case ("storage" | b"storage", Global(path), str(key), _, int(count), *view) if count >= 0:
            module, _, name = path.rpartition(".")
        case _:
            raise Problem("has a storage of an unknown form: it is damaged")
    if view not in ([], [None]):
        raise Problem("has views of storages: load it with torch.load and save it again")
    if not module.startswith("torch") or name not in STORAGES:
        raise Problem(f"has a storage of a type that cannot be read: {path}")
    dtype = DTYPES[f"torch.{STORAGES[name]}"]
    return dtype, key, count * dtype.itemsize


def _view(
    storage: Storage, dtype: np.dtype, offset: Any, shape: Any, strides: Any, metadata: Any
) -> Tensor:
    """Return a tensor that lies within a storage. Offset and strides are in elements."""
    shape = checked_shape(shape, dtype)
    steps = strides if isinstance(strides, tuple) else (None,)
    if len(steps) != len(shape) or not all(type(n) is int and n >= 0 for n in (offset, *steps)):
        raise Problem("has a tensor with impossible strides: it is damaged")
    if metadata and (metadata.get("conj") or metadata.get("neg")):
        raise Problem("has a conjugated or negated view: save it again with resolve_conj()")
    # Axes of one element may have any stride.
    plain = _c_order(shape)
    contiguous = all(n < 2 or a == b for n, a, b in zip(shape, steps, plain, strict=True))
    used = None if contiguous or 0 in shape else steps
    available = storage.contents.nbytes // dtype.itemsize
    if 0 in shape:
        offset = 0
    elif offset + extent(shape, used) > available:
        raise Problem("has a tensor that reaches beyond its storage: it is damaged")
    start = storage.contents.offset + offset * dtype.itemsize
    tensor = replace(storage.contents, offset=start, dtype=dtype, shape=shape, strides=used)
    if tensor.nbytes > max(storage.contents.nbytes, REPEATED):
        raise Problem(f"repeats a storage in a tensor of {tensor.nbytes} bytes: save a clone of it")
    return tensor


def _c_order(shape: tuple[int, ...]) -> list[int]:
    steps = [1]
    for size in reversed(shape[1:]):
        steps.insert(0, steps[0] * size)
    return steps[: len(shape)]


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Tensor:
    """Replace torch._utils._rebuild_tensor_v2, and _rebuild_tensor, which has no `others`."""
    metadata = others[2] if len(others) > 2 else None
    return _view(storage, storage.dtype, offset, shape, strides, metadata)


def _tensor_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, *others: Any
) -> Tensor:
    """Replace torch._utils._rebuild_tensor_v3: the tensor has a type, the storage has none."""
    dtype, metadata = others[0], others[1] if len(others) > 1 else None
    if dtype.path not in DTYPES:
        raise Problem(f"has a tensor of a type that cannot be read: {dtype.path}")
    return _view(storage, DTYPES[dtype.path], offset, shape, strides, metadata)


def _first(value: Any, *others: Any) -> Any:
    return value


def _subclass(function: Global, kind: Any, arguments: tuple, *state: Any) -> Any:
    """Replace torch._tensor._rebuild_from_type_v2, for tensors with attributes or a subclass."""
    make = FUNCTIONS.get(function.path)
    return Unknown(function.path) if make is None else make(*arguments)


# Our replacements for the functions that a file of torch.save calls.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._tensor._rebuild_from_type": _subclass,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.Size": _first,
    **numpy_arrays.FUNCTIONS,
}
