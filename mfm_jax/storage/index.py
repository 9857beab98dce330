"""Read `index.json`, which lists the arrays and the files of a folder, and trust nothing in it."""

import json
import math
import re
import stat
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from mfm_jax.errors import UserError, system_reason

INDEX = "index.json"
JSON = 64 << 20  # bytes at most of a JSON file
DTYPES = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int32": 4, "uint32": 4, "int64": 8,
    "uint64": 8, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Bytes of an element of each type that an array can have."""
RANK = 32  # axes at most of an array
# Arrays may be larger than their files, which leave out chunks of zeros: by so much at most.
FREE, RATIO = 1 << 30, 64
SHA256 = re.compile("[0-9a-f]{64}")


class StoreError(UserError):
    """A folder of arrays that is damaged or cannot be written; the message says why."""


class Listed(NamedTuple):
    """An array as the index lists it."""

    shape: tuple[int, ...]
    dtype: str
    part: int
    sha256: str


class Index(NamedTuple):
    """The contents of `index.json`."""

    arrays: Mapping[str, Listed]
    files: Mapping[str, tuple[int, str]]  # size in bytes and SHA-256 by relative path
    stored: Mapping[str, str]  # the name on the disk of each array


class _Problem(Exception):
    """A fault of an index, in words that continue its name."""


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. NaN and infinity, which JSON does not have, are refused.

    Raises:
        StoreError: it is missing, cannot be read, is too large or no JSON.
    """
    try:
        size = file_size(path)
        if size > JSON:
            raise StoreError(f"{path} is damaged: it has {size} bytes, at most {JSON} are read")
        return json.loads(path.read_bytes().decode(), parse_constant=_refused)
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({system_reason(error)})") from None
    except UnicodeDecodeError:
        raise StoreError(f"{path} is damaged: it is not UTF-8") from None
    except StoreError:
        raise
    except RecursionError:
        raise StoreError(f"{path} is damaged: it is nested too deeply") from None
    except ValueError:
        raise StoreError(f"{path} is damaged: it is not JSON") from None


def file_size(path: Path) -> int:
    """Return the size of a file in bytes.

    Raises:
        OSError: it cannot be read, or is no file: a pipe would never end.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(0, "it is no file")
    return status.st_size


def _refused(constant: str) -> Any:
    raise ValueError(constant)


def read_index(folder: Path, rename: Callable[[str], str] | None = None) -> Index:
    """Read the index of `folder`.

    Args:
        rename: tells the names of the arrays from those on the disk; the same if not given.

    Raises:
        StoreError: there is none, or it lists what no such folder can hold.
    """
    data = read_json(folder / INDEX)
    try:
        listed, files = _tables(data)
        stored = {name if rename is None else rename(name): name for name in listed}
        if len(stored) < len(listed):
            raise _Problem("it has arrays under old and new names")
        arrays = {name: _listed(there, listed[there]) for name, there in stored.items()}
        checked = {name: _file(name, entry) for name, entry in files.items()}
        _check_sizes(arrays, checked)
    except _Problem as problem:
        raise StoreError(f"{folder / INDEX} is damaged: {problem}") from None
    return Index(arrays, checked, stored)


def _tables(data: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    match data:
        case {"arrays": dict(arrays), "files": dict(files)}:
            return arrays, files
    raise _Problem("it has no tables of arrays and files")


def _listed(name: str, entry: Any) -> Listed:
    match entry:
        case {"shape": list(shape), "dtype": str(dtype), "part": int(part), "sha256": str(sha256)}:
            pass
        case _:
            raise _Problem(f"it does not say what {name!r} is")
    if not name.isprintable():
        raise _Problem(f"{name!r} is no name of an array")
    if dtype not in DTYPES:
        raise _Problem(f"{name} has the type {dtype!r}, which cannot be read")
    if len(shape) > RANK or not all(type(n) is int and n >= 0 for n in shape):
        raise _Problem(f"{name} has an impossible shape")
    if type(part) is not int or part < 0:
        raise _Problem(f"{name} lies in part {part!r}, which is no number of a part")
    if not SHA256.fullmatch(sha256):
        raise _Problem(f"{name} has no SHA-256")
    return Listed(tuple(shape), dtype, part, sha256)


def _file(name: str, entry: Any) -> tuple[int, str]:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or not name.isprintable():
        raise _Problem(f"{name!r} is no name of a file in it")
    match entry:
        case [int(size), str(sha256)] if type(size) is int and size >= 0:
            if SHA256.fullmatch(sha256):
                return size, sha256
    raise _Problem(f"it does not say the size and the SHA-256 of {name}")


def _check_sizes(arrays: Mapping[str, Listed], files: Mapping[str, tuple[int, str]]) -> None:
    """Check that the arrays can lie in the files, so that nothing asks for memory in vain."""
    claimed = sum(math.prod(a.shape) * DTYPES[a.dtype] for a in arrays.values())
    there = sum(size for size, _ in files.values())
    if claimed > FREE + RATIO * there:
        raise _Problem(f"it lists {claimed} bytes of arrays in {there} bytes of files")
