"""Write files and folders atomically, and lock them between processes."""

import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mfm_jax.errors import WriteError, system_reason

MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:4]
PART = re.compile(rf"\..*-{MACHINE}[0-9a-f]{{8}}(\..*)?")
"""Names of the temporary files of this machine."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the operating system when there is no room for a file."""


@contextmanager
def report_full_disk(target: Path) -> Iterator[None]:
    """Report a full disk while the block writes to the file or folder `target`.

    Raises:
        WriteError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = system_reason(error)
        raise WriteError(
            f"cannot write {target} ({reason}): make room there and start again"
        ) from None


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that is renamed to `target` when the block succeeds.

    When the block raises, the temporary file is removed and an older `target` stays. Temporary
    files of killed processes are removed by `remove_parts`.

    Raises:
        WriteError: nothing can be written there, or there is no room for it.
    """
    target = Path(target)
    part = target.with_name(f".{target.stem}-{MACHINE}{secrets.token_hex(4)}{target.suffix}")
    try:
        if target.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        handle = _new_locked(part)
    except OSError as error:
        reason = system_reason(error)
        raise WriteError(f"cannot write {target} ({reason}): choose another output path") from None
    try:
        with report_full_disk(target):
            yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def _new_locked(part: Path) -> int:
    """Create a file that is locked as long as the returned handle is open."""
    while True:
        handle = os.open(part, os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # the file system may know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if part.exists():
            return handle
        os.close(handle)  # before it was locked, another process removed it as abandoned


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in `folder`.

    Those of other machines stay: not every file system shares locks between machines.
    """
    for part in folder.iterdir() if folder.is_dir() else ():
        if PART.fullmatch(part.name) and part.is_file():
            with suppress(OSError), _open(part) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()


def flush(path: Path) -> None:
    """Wait until the bytes of a file are on the disk (fsync)."""
    with _open(path) as handle:
        os.fsync(handle)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Replace the contents of `path` atomically; the bytes are on the disk before the rename.

    Raises:
        WriteError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text)
        flush(part)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that is renamed to `path` when the block succeeds.

    When the block raises, the folder is removed and `path` does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        temporary.chmod(0o755)
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lock the file or folder `path` against other processes while the block runs.

    The lock also ends with the process. On a file system without locks this does nothing.
    """
    with _open(path) as handle:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Return whether a process has locked `folder`; also True if that cannot be told."""
    with _open(folder) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextmanager
def one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process at a time make `folder`, which need not exist; others wait."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = folder.parent / f".{folder.name}.lock"
    lock.touch()
    with locked(lock):
        yield
