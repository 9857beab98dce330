"""Tensors that lie in files: where their bytes are, and how to read one of them.

Nothing is read before `Tensor.read`, and nothing is mapped into memory, where resident pages of a
file would count: a model is converted in the memory of its largest tensors.
"""

import fnmatch
import hashlib
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.errors import UserError

CHUNK = 1 << 20  # bytes that are inflated at a time
RANK = 64  # axes that a numpy array may have
LINE = 4000  # characters of a message


class SourceError(UserError):
    """A checkpoint that cannot be read; the message is one line that says what to do."""

    def __init__(self, message: str) -> None:
        # Names that come from a file may hold line breaks and worse.
        line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message[:LINE])
        super().__init__(line + "..." * (len(message) > LINE))


class Problem(Exception):
    """What is wrong with a file, said without its name, which `about` puts before it."""


@contextmanager
def about(file: Path) -> Iterator[None]:
    """Let the block's problems be those of `file`.

    Raises:
        SourceError: the block raised a `Problem` or an `OSError`.
    """
    try:
        yield
    except Problem as problem:
        raise SourceError(f"{file} {problem}") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SourceError(f"{file} cannot be read ({reason})") from None


@dataclass(frozen=True)
class Deflated:
    """A raw deflate stream, such as a compressed entry of a zip file."""

    offset: int  # bytes from the start of the file
    size: int  # bytes, compressed


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file, not read yet."""

    file: Path
    offset: int  # bytes from the start of the file, or of what `deflated` inflates to
    dtype: np.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None  # in elements; None is C order
    deflated: Deflated | None = None  # the stream it lies in, if it does in one

    @property
    def nbytes(self) -> int:
        """Size of the array that `read` returns."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> np.ndarray:
        """A new array in C order.

        Of a strided tensor everything between its first and its last element is read.

        Raises:
            SourceError: the file cannot be read or ends too soon, or memory does not suffice.
        """
        with about(self.file):
            try:
                flat = np.empty(extent(self.shape, self.strides), self.dtype)
                self._fill(flat.view(np.uint8).data)
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
                # One call reads 2 GiB at most.
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


def _inflated(file: FileIO, stream: Deflated) -> Iterator[bytes]:
    """What the stream inflates to, at most `CHUNK` bytes at a time."""
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
                # With a full chunk there may be more to come of what was fed in before.
                compressed, full = inflater.unconsumed_tail, len(data) == CHUNK
    except zlib.error:
        raise Problem("is damaged: get it again") from None


def extent(shape: Sequence[int], strides: Sequence[int] | None) -> int:
    """Elements from the first to the last one of a tensor, both included."""
    if strides is None or 0 in shape:
        return math.prod(shape)
    return 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))


def checked_shape(shape: Any, dtype: np.dtype) -> tuple[int, ...]:
    """`shape` if an array can have it.

    Raises:
        Problem: it is not a sequence of sizes, or one of too many.
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
    """`name` if it is text that every format can hold.

    Raises:
        Problem: it is something else.
    """
    if not isinstance(name, str) or any("\ud800" <= c <= "\udfff" for c in name):
        raise Problem("has a tensor whose name is not text: it is damaged")
    return name


def listed(names: Iterable[str], most: int = 16) -> str:
    """The names in order, separated by commas; of very many the first ones."""
    ordered = sorted(names)
    more = len(ordered) - most
    return ", ".join(islice(ordered, most)) + (f" and {more} more" if more > 0 else "")


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal.

    Raises:
        SourceError: it cannot be read.
    """
    with about(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def excused(name: str, patterns: Iterable[str]) -> bool:
    """Whether a user lets the tensor pass, by one of the patterns (`*` for anything)."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
