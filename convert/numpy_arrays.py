"""Read numpy's arrays in pickles and in `.npz` files, without numpy's unpickling.

An array is written in two steps: `_reconstruct`, and a state with shape, type and bytes; since
pickle's protocol 5 as one call of `_frombuffer`. Numbers alone have a meaning here, not the arrays
of objects, for which a file could name anything.
"""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from convert.pickle_machine import CUT, Built, Global, Unknown
from convert.tensors import Problem, Tensor, checked_shape

SPECIAL = {
    f"ml_dtypes.{name}": np.dtype(getattr(ml_dtypes, name))
    for name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
}
"""The types that numpy has from elsewhere, by the name in a pickle."""
NUMBERS = "biufc"
"""The kinds of numpy's own types that are numbers."""
HEADER = 16_000  # bytes at most of the header of an array in a file, as numpy has it


class PickledType(Built):
    """A type of elements; its state is the order of their bytes."""

    def __init__(self, dtype: np.dtype | None) -> None:
        self.dtype = dtype  # None if its elements are no numbers

    def build(self, state: Any) -> None:
        """Take the order of bytes."""
        match state:
            case (_, "<" | ">" as order, *_) if self.dtype is not None:
                self.dtype = self.dtype.newbyteorder(order)


class PickledArray(Built):
    """An array; `array` is None until its state has come, and if its elements are no numbers."""

    def __init__(self) -> None:
        self.array: np.ndarray | None = None

    def build(self, state: Any) -> None:
        """Take shape, type and bytes.

        Raises:
            Problem: they do not go together.
        """
        match state:
            case (_, tuple(shape), PickledType() as kind, bool(fortran), data):
                self.copied = len(data) if isinstance(data, str) else 0
                self.array = _array(kind.dtype, shape, data, "F" if fortran else "C")
            case _:
                raise Problem(CUT)


def _array(dtype: np.dtype | None, shape: Any, data: Any, order: str) -> np.ndarray | None:
    """Return the array that some bytes are, without a copy; None if they are no numbers.

    Raises:
        Problem: they do not fill the shape.
    """
    if isinstance(data, str):  # as Python 2 wrote them
        data = data.encode("latin-1")
    if dtype is None or not isinstance(data, bytes | bytearray):
        return None
    shape = checked_shape(shape, dtype)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise Problem("has an array with more or fewer bytes than its shape: it is damaged")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _type(kind: Any = None, *others: Any) -> Any:
    """Replace numpy.dtype."""
    if isinstance(kind, Global):
        return PickledType(SPECIAL.get(kind.path))
    if not isinstance(kind, str) or len(kind) > 4:
        return Unknown("numpy.dtype")
    try:
        dtype = np.dtype(kind)
    except TypeError:
        return Unknown("numpy.dtype")
    return PickledType(dtype if dtype.kind in NUMBERS else None)


def _reconstruct(name: str, kind: Any = None, *others: Any) -> Any:
    """Replace numpy's function that makes an empty array."""
    is_array = isinstance(kind, Global) and kind.path == "numpy.ndarray"
    return PickledArray() if is_array else Unknown(name)


def _frombuffer(name: str, *arguments: Any) -> Any:
    """Replace numpy's function that makes an array of a buffer."""
    match arguments:
        case (data, PickledType() as kind, tuple(shape), "C" | "F" as order):
            made = PickledArray()
            made.array = _array(kind.dtype, shape, data, order)
            return made
    return Unknown(name)


def _encode(*arguments: Any) -> Any:
    """Replace _codecs.encode, with which older protocols write bytes."""
    match arguments:
        case (str(text), "latin1" | "latin-1"):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                raise Problem(CUT) from None
    return Unknown("_codecs.encode")


def _bytes(*arguments: Any) -> Any:
    """Replace bytes, with which older protocols write those that are empty."""
    return Unknown("builtins.bytes") if arguments else b""


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "builtins.bytes": _bytes,
    "__builtin__.bytes": _bytes,
    "numpy.dtype": _type,
    "_codecs.encode": _encode,
    **{
        name: partial(function, name)
        for package in ("numpy.core", "numpy._core")
        for name, function in (
            (f"{package}.multiarray._reconstruct", _reconstruct),
            (f"{package}.numeric._frombuffer", _frombuffer),
        )
    },
}
"""Our replacements for the functions that a pickle of arrays calls."""


def stored_array(entry: Tensor) -> Tensor | Unknown:
    """Return the array in an entry of a `.npz` file; `Unknown` if its elements are no numbers.

    Raises:
        Problem: the entry is damaged, or has big-endian numbers.
    """
    # The CRC-32 is compared when the array is read.
    start = replace(entry, shape=(min(entry.nbytes, HEADER),), crc=None).read().tobytes()
    file = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(file)
        header = "read_array_header_1_0" if version == (1, 0) else "read_array_header_2_0"
        shape, fortran, dtype = getattr(np.lib.format, header)(file)
    except Exception:
        # Numpy evaluates the header as a literal, which fails in many ways.
        raise Problem(CUT) from None
    if dtype.kind not in NUMBERS:
        return Unknown("numpy.ndarray")
    if not dtype.isnative:
        raise Problem("has big-endian numbers: save it again on a little-endian machine")
    shape = checked_shape(shape, dtype)
    strides = None
    if fortran:
        strides = tuple(math.prod(shape[:axis]) for axis in range(len(shape)))
    if file.tell() + math.prod(shape) * dtype.itemsize != entry.nbytes:
        raise Problem(CUT)
    offset = entry.offset + file.tell()
    return replace(entry, offset=offset, dtype=dtype, shape=shape, strides=strides)
