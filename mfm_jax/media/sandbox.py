"""Read and write the files of strangers in a process of its own, with limits.

Decoders are large programs in C. With `MFM_SANDBOX=1` (or `--sandbox`) the functions marked
`sandboxed` run in a child, one for each thread, which has bounded memory, open files and time, and
whose crash fails one file. Both sides speak JSON and raw arrays, so that a child that was taken
over cannot make its parent run anything.

A message is the length of its header (8 bytes), the header, and the bytes of the arrays in it.
"""

import functools
import json
import os
import selectors
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from fractions import Fraction
from io import BufferedIOBase
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from mfm_jax.errors import MediaError, UsageError, WriteError
from mfm_jax.media.video_info import VideoInfo
from mfm_jax.media.windows import Seen, View, Window, WindowSpec

SWITCH = "MFM_SANDBOX"
IN_CHILD = "MFM_IN_SANDBOX"
MEMORY = 4 << 30
"""Bytes of address space of a child."""
SECONDS = 60.0
"""Time in which a child must answer: for one window, or for the sound of one file."""
HEADER_LIMIT = 1 << 20
ARRAY_LIMIT = 2 << 30

ERRORS = {error.__name__: error for error in (MediaError, WriteError, UsageError)}
ARRAYS = ("uint8", "int64", "float32", "float64")
OBJECTS = {kind.__name__: kind for kind in (WindowSpec, View, Window, Seen, VideoInfo)}

P = ParamSpec("P")
R = TypeVar("R")
_children = threading.local()
_all: "weakref.WeakSet[_Child]" = weakref.WeakSet()


def sandboxed(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function of files run in a child where the environment asks for it."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _is_asked_for():
            return function(*args, **kwargs)
        return _child().ask({"call": function.__name__, "args": args, "kwargs": kwargs})

    return call


def sandboxed_items(function: Callable[P, Iterator[R]]) -> Callable[P, Iterator[R]]:
    """Let a generator run in a child, which makes an item when the next one is wanted."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        if not _is_asked_for():
            return function(*args, **kwargs)
        return _child().iterate(function.__name__, args, kwargs)

    return call


def _is_asked_for() -> bool:
    return bool(os.environ.get(SWITCH)) and not os.environ.get(IN_CHILD)


def end_children() -> None:
    """End the children of all threads, whatever they are doing; what was asked of them fails."""
    for child in list(_all):
        child.process.kill()


def _child() -> "_Child":
    child = getattr(_children, "child", None)
    if child is None or child.process.poll() is not None:
        child = _children.child = _Child()
    return child


class _Child:
    """A process that decodes, and the pipes to it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mfm_jax.media.sandbox_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {IN_CHILD: "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        _all.add(self)
        self._begun = 0  # iterators, each of which has its number
        self._selector = selectors.DefaultSelector()
        self._selector.register(_of(self.process.stdout), selectors.EVENT_READ)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request; return its result.

        Raises:
            MediaError: what the child says, or the child crashes or takes too long.
        """
        try:
            send(_of(self.process.stdin), request)
            if not self._selector.select(SECONDS):
                raise TimeoutError
            reply = receive(_of(self.process.stdout))
        except (OSError, ValueError, EOFError, TimeoutError) as error:
            self._end()
            what = f"takes more than {SECONDS:g} s" if isinstance(error, TimeoutError) else "fails"
            raise MediaError(
                f"{_path_in(request)} cannot be decoded (its decoder {what}): leave it out"
            ) from None
        if "error" in reply:
            kind = ERRORS.get(reply["error"], RuntimeError)
            raise kind(str(reply["message"]))
        return reply["value"]

    def iterate(self, name: str, args: tuple, kwargs: dict[str, Any]) -> Iterator[Any]:
        """Yield what a generator in the child yields, asking for one item after the other."""
        request = {"call": name, "args": args, "kwargs": kwargs}
        number = self._begun = self._begun + 1
        self.ask({"begin": request, "number": number})
        try:
            while (item := self.ask({"next": request, "number": number})) is not None:
                yield item
        finally:
            if self.process.poll() is None:
                self.ask({"close": request, "number": number})

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._selector.close()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # the child may not have read everything
                _of(pipe).close()

    def __del__(self) -> None:
        if self.process.returncode is None:
            self._end()


def _of(pipe: Any) -> BufferedIOBase:
    assert pipe is not None, "both are pipes"
    return pipe


def _path_in(request: dict[str, Any]) -> str:
    inner = next((request[key] for key in ("begin", "next", "close") if key in request), request)
    return str((*inner["args"], *inner["kwargs"].values())[0])


def send(pipe: BufferedIOBase, message: dict[str, Any]) -> None:
    """Write a message."""
    arrays: list[np.ndarray] = []
    header = json.dumps(_packed(message, arrays)).encode()
    pipe.write(len(header).to_bytes(8, "big") + header)
    for array in arrays:
        pipe.write(array.reshape(-1).view(np.uint8).data)
    pipe.flush()


def receive(pipe: BufferedIOBase) -> dict[str, Any]:
    """Read a message.

    Raises:
        EOFError: the other side has ended.
        ValueError: it is no message.
    """
    length = int.from_bytes(_exactly(pipe, 8), "big")
    if length > HEADER_LIMIT:
        raise ValueError("the header is too long")
    message = _unpacked(json.loads(_exactly(pipe, length)), pipe)
    if not isinstance(message, dict):
        raise ValueError("it is no message")
    return message


def _exactly(pipe: BufferedIOBase, count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _packed(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return `value` as JSON can hold it; arrays are added to `arrays` instead."""
    if isinstance(value, np.ndarray):
        arrays.append(np.ascontiguousarray(value))
        return {"array": value.dtype.name, "shape": list(value.shape)}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, Fraction):
        return float(value)
    if is_dataclass(value) and not isinstance(value, type):
        parts = {f.name: _packed(getattr(value, f.name), arrays) for f in fields(value)}
        return {"object": type(value).__name__, "fields": parts}
    if isinstance(value, dict):
        return {"dict": {key: _packed(item, arrays) for key, item in value.items()}}
    if isinstance(value, tuple):
        return {"tuple": [_packed(item, arrays) for item in value]}
    if isinstance(value, list):
        return [_packed(item, arrays) for item in value]
    return value


def _unpacked(value: Any, pipe: BufferedIOBase) -> Any:
    if isinstance(value, list):
        return [_unpacked(item, pipe) for item in value]
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return _array(str(value["array"]), value["shape"], pipe)
    if "path" in value:
        return Path(value["path"])
    if "tuple" in value:
        return tuple(_unpacked(item, pipe) for item in value["tuple"])
    if "object" in value:
        return OBJECTS[value["object"]](
            **{name: _unpacked(item, pipe) for name, item in value["fields"].items()}
        )
    return {key: _unpacked(item, pipe) for key, item in value["dict"].items()}


def _array(name: str, shape: list[int], pipe: BufferedIOBase) -> np.ndarray:
    if name not in ARRAYS or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError("it is no array")
    size = int(np.prod(shape, dtype=object)) * np.dtype(name).itemsize
    if size > ARRAY_LIMIT:
        raise ValueError("the array is too large")
    return np.frombuffer(bytearray(_exactly(pipe, size)), name).reshape(shape)
