"""Compare the files of arrays with their sums, most of them while others are already being read."""

import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from mfm_jax.storage.index import StoreError
from mfm_jax.storage.store import Store, part_folder

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Holds what tells a running Linux from all others."""
MOST = 5
"""Problems that an error names."""


def require(problems: Sequence[str]) -> None:
    """Refuse what is damaged.

    Raises:
        StoreError: there are problems; names the first few.
    """
    if problems:
        more = f"; and {len(problems) - MOST} more" if len(problems) > MOST else ""
        raise StoreError(f"it is damaged ({'; '.join(problems[:MOST])}{more}): make it again")


@contextmanager
def verified(store: Store) -> Iterator[Callable[[int], None]]:
    """Yield a function that waits until the files of a part are checked, and raises if damaged.

    Threads check the parts in the order in which they are read. So hardly more than the first one
    is waited for, and no damaged file is parsed.
    """
    pool = ThreadPoolExecutor(os.cpu_count())
    parts = {part: store.files_in(part_folder(part)) for part in store.parts()}
    found = {part: [pool.submit(store.damage, n) for n in names] for part, names in parts.items()}
    added = store.added()

    def wait(part: int) -> None:
        problems = [problem for future in found[part] if (problem := future.result())]
        strange = [n for n in added if n.startswith(f"{part_folder(part)}/")]
        require([*problems, *(f"{name} does not belong there" for name in strange)])

    try:
        yield wait
    finally:
        pool.shutdown(cancel_futures=True)


def verify_together(store: Store) -> None:
    """Check the files of all arrays, divided between processes; all of them must call this.

    The processes that read the same folder divide its files, and a machine with a folder of its own
    checks all of it. Every process then raises if any has found something.

    Raises:
        StoreError: a file is damaged here, or in another process.
    """
    index, count = _share(store.folder)
    names = [name for part in store.parts() for name in store.files_in(part_folder(part))]
    largest_first = sorted(names, key=lambda name: (-store.files[name][0], name))
    problems = store.damaged(largest_first[index::count])
    damaged = multihost_utils.process_allgather(np.int32(bool(problems)))
    if damaged.any() and not problems:
        problems = [f"process {int(damaged.argmax())} has found damage"]
    require(problems)


def _share(folder: Path) -> tuple[int, int]:
    """Return `(index, count)` of this process among those that read the same folder."""
    try:
        system = BOOT.read_text()
    except OSError:
        system = platform.node()
    place = folder.stat()
    # On one running system these two numbers tell a folder from all others.
    text = f"{system} {place.st_dev} {place.st_ino}"
    mine = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    all_of_them = multihost_utils.process_allgather(mine)
    same = [i for i, other in enumerate(all_of_them) if np.array_equal(other, mine)]
    return same.index(jax.process_index()), len(same)
