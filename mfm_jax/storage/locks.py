"""Locks and claims of files and folders, by the kernel on a machine and by leases in a store."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mfm_jax.runtime import signals
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.leases import Leases

CLAIM = 20.0
"""Seconds for which a folder in a store stays claimed by a process that has died elsewhere."""


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Yield a handle of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def new_locked(path: Path, *, folder: bool = False) -> int:
    """Create a file or folder that is locked as long as the returned handle is open."""
    while True:
        with signals.not_ending():
            if folder:
                path.mkdir()
            try:
                handle = os.open(path, os.O_RDONLY if folder else os.O_CREAT | os.O_EXCL, 0o666)
            except FileNotFoundError:
                if folder and path.parent.is_dir():
                    continue  # another process has taken the new folder for abandoned
                raise
        with suppress(OSError):  # the file system may know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if path.exists():
            return handle
        os.close(handle)  # before it was locked, another process removed it as abandoned


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file or folder `path` against other processes while the block runs.

    The lock also ends with the process. On a file system without locks this does nothing.
    """
    with opened(path) as handle:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def claimed_folder(folder: Path) -> Iterator[bool]:
    """Make `folder` if it is not there, and lock it; yield False if another process has locked it.

    On a file system without locks every process gets it. In a store the lock is a lease, which ends
    `CLAIM` seconds after its process.
    """
    if isinstance(folder, StorePath):
        with Leases(folder.parent, CLAIM) as leases:
            yield leases.take_from_the_dead(f".{folder.name}") is not None
        return
    handle, alone = _claim(folder)
    try:
        yield alone
    finally:
        os.close(handle)


def _claim(folder: Path) -> tuple[int, bool]:
    """Return a handle of `folder`, and whether this locked it."""
    while True:
        handle = _made(folder)
        alone = _lock_at_once(handle)
        if not alone or is_at(handle, folder):
            return handle, alone
        os.close(handle)


def _made(folder: Path) -> int:
    """Make `folder` and open it, also while other processes make and remove it."""
    for _ in range(100):
        with suppress(FileNotFoundError, FileExistsError):
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(folder, os.O_RDONLY)
    folder.mkdir(parents=True, exist_ok=True)
    return os.open(folder, os.O_RDONLY)


def _lock_at_once(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system knows no locks
        pass
    return True


def is_at(handle: int, path: Path) -> bool:
    """Return whether the file or folder of a handle still has this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(handle), path.stat())
    return False


@contextmanager
def locked_new_folder(path: Path) -> Iterator[None]:
    """Make the folder `path`, which must not exist, and lock it while the block runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = new_locked(path, folder=True)
    try:
        yield
    finally:
        os.close(handle)


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked `folder`; also True if that cannot be told."""
    try:
        with opened(folder) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time make `folder`, which need not exist; others wait."""
    if isinstance(folder, StorePath):
        with Leases(folder.parent) as leases:
            while leases.take(f".{folder.name}.lock") is None:
                time.sleep(1.0)
            yield
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    lock.touch()
    with locked(lock):
        yield
