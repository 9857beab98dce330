"""Ctrl-C and SIGTERM end a command at once, with one line and without temporary files.

Nothing is unwound: an exception from a signal handler would wait for compilers and for threads, and
libraries swallow some. What is not to outlive the process is registered with `undone` instead.
"""

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM)
PR_SET_PDEATHSIG = 1  # of prctl(2): the signal that a process gets when its parent ends

_name = "mfm"
_undo: dict[object, Callable[[], None]] = {}
_ending = threading.RLock()  # held from the signal to the end of the process


def catch(name: str) -> None:
    """Let Ctrl-C and SIGTERM end this process with exit code 130 or 143 and the line "NAME: ...".

    Programs call it before they import anything that takes time. A signal that is ignored, as in
    `nohup`, stays ignored.
    """
    global _name
    _name = name
    if threading.current_thread() is not threading.main_thread():
        return
    for number in NUMBERS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)
    atexit.register(_ignore)  # the first one, which runs last
    # Handlers run in the main thread, and not before a compiler returns. This thread does not wait.
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), name="signals", daemon=True).start()


def rename(name: str) -> None:
    """Set the name of the program in the line."""
    global _name
    _name = name


def end_quietly() -> None:
    """Let SIGTERM end a worker process without a line; Ctrl-C is left to its parent.

    On Linux it ends with its parent, also if that is killed.
    """
    rename("")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _handle)


@contextmanager
def undone(undo: Callable[[], None]) -> Iterator[None]:
    """Call `undo` if a signal ends the process while the block runs."""
    key = object()
    with _ending:
        _undo[key] = undo
    try:
        yield
    finally:
        _undo.pop(key, None)


@contextmanager
def not_ending() -> Iterator[None]:
    """Make what `undone` would undo; once the process ends, this blocks."""
    with _ending:
        yield


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C, for good, from processes that the block starts: they inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ignore() -> None:
    """Ignore signals once everything is done: the interpreter drops its handlers as it ends."""
    for number in NUMBERS:
        if signal.getsignal(number) is _handle:
            signal.signal(number, signal.SIG_IGN)


def _handle(number: int, frame: FrameType | None) -> None:
    _end(number)


def _watch(reading: int) -> None:
    while pieces := os.read(reading, 1):
        # A training run has handlers of its own while it can stop after a step.
        if signal.getsignal(pieces[0]) is _handle:
            _end(pieces[0])


def _end(number: int) -> None:
    with _ending:
        _stop_children()
        for undo in reversed(list(_undo.values())):
            with suppress(Exception):
                undo()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # it may be closed, or in the middle of a write
                stream.flush()
        if _name:
            new_line = "\n" if os.isatty(2) else ""  # a progress bar stands on this one
            with suppress(OSError):
                os.write(2, f"{new_line}{_name}: stopped\n".encode())
        os._exit(128 + number)


def _stop_children() -> None:
    """End the workers of process pools, which would wait for work for ever."""
    if "multiprocessing.util" not in sys.modules:
        return
    from multiprocessing import active_children, util

    children = active_children()
    for child in children:
        child.terminate()
    until = time.monotonic() + 2
    for child in children:
        child.join(max(0.0, until - time.monotonic()))
        child.kill()
    # Or a process of Python itself warns of semaphores that are left.
    util._run_finalizers(0)  # type: ignore[attr-defined]
