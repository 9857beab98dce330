"""Files and folders that come into being whole or not at all, and locks between processes."""

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
"""Names of files that this machine has begun and that are not whole yet."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a system that has no more room for a file."""


@contextmanager
def told_where_full(place: Path) -> Iterator[None]:
    """What is written in the block goes to the file or folder `place`.

    Raises:
        WriteError: there is no room for it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = system_reason(error)
        raise WriteError(
            f"cannot write {place} ({reason}): make room there and start again"
        ) from None


@contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """A temporary path beside `target` that becomes `target` once the block has succeeded.

    Nothing is left behind when the block raises, and an older `target` then stays as it was. What a
    killed process leaves is for `remove_parts`.

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
        with told_where_full(target):
            yield part
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
        os.close(handle)


def _new_locked(part: Path) -> int:
    """Create a file and lock it, as long as the handle is open."""
    while True:
        handle = os.open(part, os.O_CREAT | os.O_EXCL, 0o666)
        with suppress(OSError):  # the file system may know no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if part.exists():
            return handle
        os.close(handle)  # another process took it for a killed one's before it was locked


def remove_parts(folder: Path) -> None:
    """Remove the parts of files that killed processes left in `folder`, and no others.

    Those of other machines stay: not every file system tells one machine of another's locks.
    """
    for part in folder.iterdir() if folder.is_dir() else ():
        if PART.fullmatch(part.name) and part.is_file():
            with suppress(OSError), _open(part) as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                part.unlink()


def flush(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
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
    """Replace `path` by `text` in one step; the bytes are on the disk before the name changes.

    Raises:
        WriteError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(text)
        flush(part)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name when the block ends well.

    On an exception it is removed and `path` does not exist.
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
    """Hold the file or folder `path` locked against other processes; the lock ends with this one.

    Where the file system knows no locks, nothing is held.
    """
    with _open(path) as handle:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(folder: Path) -> bool:
    """Whether some process holds `folder` locked, or may hold it."""
    with _open(folder) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False
