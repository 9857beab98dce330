"""Temporary files and folders of this machine, which become what they are for or are removed.

Each is locked while its process lives. So another process can tell what a killed one has left, and
removes it.
"""

import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mfm_jax.errors import UserError, WriteError, full_disk, system_reason
from mfm_jax.runtime import signals
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.locks import new_locked, opened

MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:4]
PART = re.compile(rf"\.(.*-)?{MACHINE}[0-9a-f]{{8}}(\..*)?")
"""Names of the temporary files of this machine; earlier versions put the target's name in front."""
PART_FOLDER = re.compile(rf"\.{MACHINE}[0-9a-f]{{8}}")
"""Names of the temporary folders of this machine."""
LONGEST_SUFFIX = 16
"""Characters: libraries tell formats by shorter ones, and a name has 255 bytes at most."""

_swept: set[Path] = set()


@contextmanager
def report_full_disk(target: Path) -> Iterator[None]:
    """Report a full disk while the block writes to the file or folder `target`.

    Raises:
        WriteError: the disk is full.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if reason := full_disk(error):
            raise WriteError(
                f"cannot write {target} ({reason}): make room there and start again"
            ) from None
        raise


@contextmanager
def new_part(target: Path) -> Iterator[Path]:
    """Make a locked temporary file beside `target`, which is removed after the block.

    Raises:
        WriteError: nothing can be written there.
    """
    part = temporary(target.parent, short_suffix(target))
    with signals.undone(partial(part.unlink, missing_ok=True)):
        try:
            _check_replaceable(target)
            sweep(target.parent)
            handle = new_locked(part)
        except OSError as error:
            raise WriteError(
                f"cannot write {target} ({system_reason(error)}): choose another output path"
            ) from None
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
            os.close(handle)


def _check_replaceable(target: Path) -> None:
    """Raise OSError unless `target` is a file or may become one."""
    with suppress(FileNotFoundError):
        mode = target.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(0, "it is a folder")
        if not stat.S_ISREG(mode):  # a rename would remove /dev/null itself
            raise OSError(0, "it is a device or a pipe")


@contextmanager
def new_part_folder(parent: Path) -> Iterator[Path]:
    """Make a locked temporary folder, which is removed after the block."""
    outer = temporary(parent)  # locked, so that what is in it can be locked by others
    remove = partial(shutil.rmtree, outer, ignore_errors=True)
    with signals.undone(remove):
        handle = new_locked(outer, folder=True)
        try:
            yield outer
        finally:
            remove()
            os.close(handle)


def temporary(folder: Path, suffix: str = "") -> Path:
    """Return a new name for a temporary file or folder."""
    return folder / f".{MACHINE}{secrets.token_hex(4)}{suffix}"


def short_suffix(path: Path) -> str:
    """Return the suffix, by which libraries tell formats; none if it is longer than theirs."""
    return path.suffix if len(path.suffix) <= LONGEST_SUFFIX else ""


def sweep(folder: Path) -> None:
    """Remove what killed processes left in `folder`, at its first use in this process."""
    if folder.absolute() not in _swept:
        _swept.add(folder.absolute())
        remove_parts(folder)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left in `folder`.

    Those of other machines stay: not every file system shares locks between machines.
    """
    if isinstance(folder, StorePath):
        return  # there are none
    with suppress(OSError):
        for part in folder.iterdir():
            if _is_part(part):
                _remove_abandoned(part)


def _is_part(path: Path) -> bool:
    if path.is_symlink():
        return False
    if PART_FOLDER.fullmatch(path.name) and path.is_dir():
        return True
    return PART.fullmatch(path.name) is not None and path.is_file()


def _remove_abandoned(part: Path) -> None:
    with suppress(OSError), opened(part) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if part.is_dir():
            shutil.rmtree(part, ignore_errors=True)
        else:
            part.unlink()
