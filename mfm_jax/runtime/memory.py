"""Keeps the memory that a process on the CPU frees, so that the next step reuses it."""

import ctypes
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import jax

TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8
"""Parameter numbers of `mallopt`, from glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, instead of returning it and asking for cleared pages again.

    XLA allocates the intermediate values of a program at every call, and glibc returns arrays of
    that size to the system at once. After this call it keeps them, in one arena for all threads,
    because the arena of a single thread holds no large arrays. The cost is fragmentation: small
    arrays may occupy the space of a large one.

    This does nothing unless JAX computes on the CPU with glibc, or if the user has set a `MALLOC_`
    variable. Call it before anything uses a device: it does not change the arenas of threads that
    have allocated before.
    """
    set_by_user = any(name.startswith("MALLOC_") for name in os.environ)
    if set_by_user or sys.platform != "linux" or not _on_cpu():
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for parameter, value in ((ARENA_MAX, 1), (MMAP_MAX, 0), (TRIM_THRESHOLD, -1)):
            libc.mallopt(parameter, value)


def _on_cpu() -> bool:
    """Tell if JAX will compute on the CPU. Asking JAX itself would start its threads."""
    if asked := jax.config.values["jax_platforms"]:
        return asked == "cpu"
    accelerated = find_spec("libtpu") or find_spec("jax_plugins")
    return not (accelerated or entry_points(group="jax_plugins"))
