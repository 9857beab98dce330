"""Worker processes that start clean, and end with the process that started them."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from mfm_jax.runtime import signals

T = TypeVar("T")
R = TypeVar("R")


def map_in_processes(
    work: Callable[[T], R], items: Iterable[T], *, processes: int, chunk: int = 1
) -> Iterator[R]:
    """Yield `work(item)` for each item, in order; `chunk` items go to a process at a time."""
    # A forked process would inherit JAX's threads and PyAV's; a spawned one starts clean.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=spawn, initializer=signals.end_quietly) as pool:
        with signals.interrupts_held():  # also while the workers import their modules
            results = pool.map(work, items, chunksize=chunk)
        yield from results
