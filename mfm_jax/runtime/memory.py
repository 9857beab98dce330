"""The memory of a process that computes on the CPU, kept for the next step."""

import ctypes
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Numbers of parameters of `mallopt`, from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, so that the system need not give and clear it again.

    XLA allocates a program's intermediate values at every call, and glibc gives arrays of their
    size back to the system at once. Here it keeps them, in one arena for all threads: one of a
    single thread holds no large array. The price is memory, as small arrays come to lie where a
    large one was.
    Does nothing unless JAX computes on the CPU with glibc, nor where the user has set a `MALLOC_`
    variable. Call it before anything uses a device: a thread that has allocated goes on as it did.
    """
    told = any(name.startswith("MALLOC_") for name in os.environ)
    if told or sys.platform != "linux" or not _on_cpu():
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)


def _on_cpu() -> bool:
    """Whether JAX computes on the CPU; to ask JAX itself would start its threads."""
    if asked := jax.config.values["jax_platforms"]:
        return asked == "cpu"
    accelerated = find_spec("libtpu") or find_spec("jax_plugins")
    return not (accelerated or entry_points(group="jax_plugins"))
