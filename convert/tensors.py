"""Tensors in files: the location of their bytes, and reading them one by one.

Nothing is read before `Tensor.read`. Files are not mapped into memory, as their resident pages
would count: a conversion needs memory for its largest tensors only.
"""

import fnmatch
import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.errors import UserError, one_line
from mfm_jax.storage.retries import AddressError

CHUNK = 1 << 20  # bytes that are inflated at once
RANK = 64  # axes at most of a numpy array
LINE = 4000  # characters at most of a message


def line(message: str) -> str:
    """Return a message as a line that can be read: a file's names and values may be anything."""
    return one_line(message[:LINE]) + "..." * (len(message) > LINE)


class SourceError(UserError):
    """A checkpoint that cannot be read; the message is one line that says what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(line(message))


class Problem(Exception):
    """A problem with a file, worded without the file's name, which `about` adds."""


@contextmanager
def about(file: Path) -> Iterator[None]:
    """Turn a `Problem` in the block into an error about `file`.

    Raises:
        SourceError: the block raised a `Problem` or an `OSError`.
    """
    try:
        yield
    except Problem as problem:
        raise SourceError(f"{file} {problem}") from None
    except AddressError:
        raise
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SourceError(f"{file} cannot be read ({reason})") from None


@dataclass(frozen=True)
class Deflated:
    """A raw deflate stream, such as a compressed entry of a zip file."""

    offset: int  # bytes from the start of the file
    size: int  # bytes, compressed


@dataclass(eq=False)
class Crc:
    """The CRC-32 of an entry of a zip file, compared when something in it is first read."""

    entry: str
    expected: int
    offset: int  # as in `Tensor`
    size: int  # bytes
    checked: bool = False

    def check(self, found: int) -> None:
        """Compare the CRC-32 of the entry's bytes.

        Raises:
            Problem: it is another.
        """
        if found != self.expected:
            raise Problem(f"has other bytes than it says in its entry {self.entry}: get it again")
        self.checked = True


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, not read yet."""

    file: Path
    offset: int  # bytes from the start of the file, or of what `deflated` inflates to
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None  # in elements; None is C order
    deflated: Deflated | None = None  # the stream that contains it, if any
    crc: Crc | None = field(default=None, compare=False)  # of the entry that contains it, if any

    @property
    def nbytes(self) -> int:
        """Size of the array that `read` returns."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """Read the tensor into a new array in C order.

        For a strided tensor everything between its first and last element is read.

        Raises:
            SourceError: the file cannot be read or ends too soon, its entry in a zip file has
                another CRC-32 than it says, or memory is short.
        """
        with about(self.file):
            try:
                flat = np.empty(extent(self.shape, self.strides), self.dtype)
                self._fill(flat.view(np.uint8).data)
                self._check(flat)
                if self.strides is None or 0 in self.shape:
                    return flat.reshape(self.shape)
                steps = [stride * self.dtype.itemsize for stride in self.strides]
                return np.lib.stride_tricks.as_strided(flat, self.shape, steps).copy()
            except MemoryError:
                raise Problem(f"has a tensor of {self.nbytes} bytes: more memory needed") from None

    def _fill(self, target: memoryview) -> None:
        with self.file.open("rb", buffering=0) as file:
            if self.deflated is None:
                file.seek(self.offset)
                # One call reads at most 2 GiB.
                while target and (size := file.readinto(target)):
                    target = target[size:]
            else:
                skip = self.offset
                for data in _inflated(file, self.deflated):
                    part = data[skip : skip + len(target)]
                    skip -= min(skip, len(data))
                    target[: len(part)] = part
                    target = target[len(part) :]
                    if not target:
                        break
        if target:
            raise Problem("is cut short: get it again")

    def _check(self, flat: np.ndarray) -> None:
        """Compare the CRC-32 of the entry around the tensor, whose bytes are `flat`, once."""
        if self.crc is None or self.crc.checked:
            return
        if (self.offset, flat.nbytes) == (self.crc.offset, self.crc.size):
            self.crc.check(zlib.crc32(flat.view(np.uint8).data))
            return
        with self.file.open("rb", buffering=0) as file:
            whole = self.deflated
            pieces = _stored(file, self.crc) if whole is None else _inflated(file, whole)
            found, left = 0, self.crc.size
            for data in pieces:
                found = zlib.crc32(data[:left], found)
                left -= min(left, len(data))
        self.crc.check(found)


class Held(Tensor):
    """An array that a file holds inside its pickle, and so is in memory already."""

    def __init__(self, file: Path, array: np.ndarray) -> None:
        super().__init__(file, 0, array.dtype.newbyteorder("="), array.shape)
        object.__setattr__(self, "array", array)

    array: np.ndarray

    def read(self) -> np.ndarray:
        """Return a copy of the array, in the machine's order of bytes."""
        return np.array(self.array, self.dtype, order="C")


class Reshaped(Tensor):
    """A tensor in another shape with as many elements."""

    def __init__(self, tensor: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__(tensor.file, tensor.offset, tensor.dtype, shape)
        object.__setattr__(self, "tensor", tensor)

    tensor: Tensor

    def read(self) -> np.ndarray:
        """Read the tensor and reshape it."""
        return self.tensor.read().reshape(self.shape)


def _stored(file: FileIO, crc: Crc) -> Iterator[bytes]:
    """Yield the bytes of an entry that is not compressed, at most `CHUNK` at once."""
    file.seek(crc.offset)
    left = crc.size
    while left and (data := file.read(min(CHUNK, left))):
        left -= len(data)
        yield data


def _inflated(file: FileIO, stream: Deflated) -> Iterator[bytes]:
    """Yield the inflated stream, at most `CHUNK` bytes at once."""
    file.seek(stream.offset)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    left = stream.size
    try:
        while left and not inflater.eof:
            compressed = file.read(min(CHUNK, left))
            if not compressed:
                return
            left -= len(compressed)
            full = True
            while compressed or full:
                data = inflater.decompress(compressed, CHUNK)
                yield data
                # After a full chunk, the input so far may give more output.
                compressed, full = inflater.unconsumed_tail, len(data) == CHUNK
    except zlib.error:
        raise Problem("is damaged: get it again") from None


def extent(shape: Sequence[int], strides: Sequence[int] | None) -> int:
    """Return the number of elements from the first to the last one of a tensor."""
    if strides is None or 0 in shape:
        return math.prod(shape)
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def checked_shape(shape: Any, dtype: np.dtype) -> tuple[int, ...]:
    """Return `shape` if an array can have it.

    Raises:
        Problem: it is not a sequence of sizes, or too large.
    """
    if (
        not isinstance(shape, list | tuple)
        or len(shape) > RANK
        or not all(type(n) is int and n >= 0 for n in shape)
        # Numpy counts the elements without the empty axes.
        or math.prod(max(n, 1) for n in shape) * dtype.itemsize >= 1 << 63
    ):
        raise Problem("has a tensor of an impossible shape: it is damaged")
    return tuple(shape)


def checked_name(name: Any) -> str:
    """Return `name` if it is text that every format can hold.

    Raises:
        Problem: it is something else.
    """
    if not isinstance(name, str) or any("\ud800" <= c <= "\udfff" for c in name):
        raise Problem("has a tensor whose name is not text: it is damaged")
    return name


def listed(names: Iterable[str], most: int = 16) -> str:
    """Return the sorted names, separated by commas; the first `most` if there are more."""
    ordered = sorted(names)
    more = len(ordered) - most
    return ", ".join(islice(ordered, most)) + (f" and {more} more" if more > 0 else "")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Raises:
        SourceError: it cannot be read.
    """
    with about(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def excused(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a name matches one of the user's patterns (`*` for anything)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
