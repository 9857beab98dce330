"""Read the headers of safetensors files, and write such files array by array.

A file is the size of its header (8 bytes, little-endian), the header (JSON: dtype, shape and offset
of every tensor), and the tensors without holes. https://github.com/huggingface/safetensors
"""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from convert.tensors import Problem, Tensor, about, checked_name, checked_shape, listed

HEADER = 100_000_000  # bytes at most of a header
METADATA = "__metadata__"
# From the narrowest to the widest. Files hold the widest first, so that every tensor is aligned.
DTYPES = {
    name: np.dtype(dtype)
    for name, dtype in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E8M0": ml_dtypes.float8_e8m0fnu,
        "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
        "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
        "I16": np.int16,
        "U16": np.uint16,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "I32": np.int32,
        "U32": np.uint32,
        "F32": np.float32,
        "C64": np.complex64,
        "F64": np.float64,
        "I64": np.int64,
        "U64": np.uint64,
    }.items()
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Specs = Mapping[str, tuple[np.dtype, tuple[int, ...]]]


def is_safetensors(path: Path) -> bool:
    """Return whether `path` begins like a safetensors file; its name does not matter.

    Raises:
        SourceError: it cannot be read.
    """
    with about(path), path.open("rb") as file:
        start = file.read(9)
    return len(start) == 9 and _size(start[:8]) <= HEADER and start[8:] == b"{"


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, in the order of its header.

    Raises:
        SourceError: it cannot be read, or violates the specification of the format.
    """
    with about(path):
        header, start, end = _parsed(path)
        tensors = {
            checked_name(name): _tensor(name, entry, path, start)
            for name, entry in header.items()
            if name != METADATA
        }
        _check_layout(tensors, start, end)
    return tensors


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a file has beside its tensors.

    Raises:
        SourceError: it cannot be read, or is damaged.
    """
    with about(path):
        metadata = _parsed(path)[0].get(METADATA, {})
        if not isinstance(metadata, dict) or not all(
            isinstance(text, str) for text in metadata.values()
        ):
            raise Problem(f"has a header whose {METADATA} is not a table of texts: it is damaged")
    return metadata


def _parsed(path: Path) -> tuple[dict[str, Any], int, int]:
    """Return the header, and the offsets where the tensors begin and end in the file."""
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            raise Problem("is too short for a safetensors file: get it again")
        size, end = _size(start), path.stat().st_size
        if size > HEADER:
            raise Problem(f"has a header of {size} bytes, at most {HEADER} are allowed")
        if 8 + size > end:
            raise Problem("is cut short in its header: get it again")
        text = file.read(size)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise Problem("has a header that is not JSON: it is damaged") from None
    if not isinstance(header, dict) or not text.startswith(b"{"):
        raise Problem("has a header that is not a JSON object: it is damaged")
    return header, 8 + size, end


def _size(start: bytes) -> int:
    return struct.unpack("<Q", start)[0]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        twice = [name for name, times in Counter(name for name, _ in pairs).items() if times > 1]
        raise Problem(f"has a header that says twice what these are: {listed(twice)}")
    return table


def _tensor(name: str, entry: Any, path: Path, start: int) -> Tensor:
    match entry:
        case {
            "dtype": str(dtype),
            "shape": list(shape),
            "data_offsets": [int(begin), int(end)],
        } if type(begin) is type(end) is int:
            sizes = checked_shape(shape, DTYPES[dtype]) if dtype in DTYPES else ()
        case _:
            raise Problem(f"has a header that does not say what {name} is: it is damaged")
    if dtype not in DTYPES:
        raise Problem(f"has {name} in the type {dtype}, which cannot be read")
    tensor = Tensor(path, start + begin, DTYPES[dtype], sizes)
    if not 0 <= begin <= end or end - begin != tensor.nbytes:
        raise Problem(f"has {name}, {dtype} {shape}, at bytes {begin} to {end}: it is damaged")
    return tensor


def _check_layout(tensors: Mapping[str, Tensor], start: int, end: int) -> None:
    """Check that the tensors lie one after the other and fill the file."""
    offset = start
    for name, tensor in sorted(tensors.items(), key=lambda i: (i[1].offset, i[1].nbytes)):
        if tensor.offset != offset:
            kind = "an overlap" if tensor.offset < offset else "a hole"
            raise Problem(f"has {kind} before {name}: it is damaged")
        offset += tensor.nbytes
    if offset > end:
        raise Problem(f"is cut short by {offset - end} bytes: get it again")
    if offset < end:
        raise Problem(f"has {end - offset} bytes after its last tensor: it is damaged")


def write(
    path: Path,
    specs: Specs,
    arrays: Iterable[tuple[str, np.ndarray]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a stream of arrays, in any order, whose (dtype, shape) is listed in `specs`.

    Only the current array is in memory. After an exception the file is incomplete.

    Raises:
        ValueError: an array is not in `specs`, differs from it, comes twice or is missing; or the
            format lacks a dtype.
        OSError: the file cannot be written.
    """
    header, offsets = _header(specs, metadata)
    waiting = dict(specs)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, array in arrays:
            if name not in waiting:
                raise ValueError(f"{name} {'comes twice' if name in specs else 'is not expected'}")
            dtype, shape = waiting.pop(name)
            if array.dtype != dtype or array.shape != tuple(shape):
                raise ValueError(
                    f"{name} is {array.dtype} {array.shape}, should be {dtype} {tuple(shape)}"
                )
            file.seek(8 + len(header) + offsets[name])
            _write_array(file, array)
    if waiting:
        raise ValueError(f"arrays that did not come: {listed(waiting)}")


def _header(specs: Specs, metadata: Mapping[str, str] | None) -> tuple[bytes, dict[str, int]]:
    """Return the header, padded to 8 bytes, and the offset of every tensor behind it."""
    if METADATA in specs:
        raise ValueError(f"a tensor cannot be called {METADATA}")
    unknown = sorted({str(dtype) for dtype, _ in specs.values() if np.dtype(dtype) not in NAMES})
    if unknown:
        raise ValueError(f"a safetensors file cannot hold {', '.join(unknown)}")
    rank = {dtype: -index for index, dtype in enumerate(NAMES)}
    table: dict[str, Any] = {} if metadata is None else {METADATA: dict(sorted(metadata.items()))}
    offsets, offset = {}, 0
    for name in sorted(specs, key=lambda name: (rank[np.dtype(specs[name][0])], name)):
        dtype, shape = np.dtype(specs[name][0]), specs[name][1]
        end = offset + math.prod(shape) * dtype.itemsize
        table[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offsets[name], offset = offset, end
    header = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8), offsets


def _write_array(file: BinaryIO, array: np.ndarray) -> None:
    # In pieces, as a copy of a transposed array could be as large as the largest tensor.
    flags = ["external_loop", "buffered", "zerosize_ok"]
    pieces: Any = np.nditer(array, flags, order="C", buffersize=1 << 18)  # type: ignore[call-overload]
    for piece in pieces:
        file.write(np.ascontiguousarray(piece).view(np.uint8).data)
