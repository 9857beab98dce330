"""Files and folders appear under their names when they are complete, or not at all."""

import os
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mfm_jax.errors import UsageError, WriteError, system_reason
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.locks import opened
from mfm_jax.storage.parts import new_part, new_part_folder, report_full_disk, sweep, temporary
from mfm_jax.storage.retries import AddressError
from mfm_jax.storage.scratch import is_scratch, scratch, scratch_file


@contextmanager
def atomic_write(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target` that is renamed to `target` when the block succeeds.

    When the block raises, the temporary file is removed and an older `target` stays. The first
    write into a folder removes the temporary files that killed processes left there. For a target
    in a store the temporary file is on this machine, and becomes the object as a whole.

    Raises:
        WriteError: nothing can be written there, or there is no room for it.
    """
    if isinstance(target, StorePath):
        with scratch_file(target.name) as part:
            with report_full_disk(part):
                yield part
            target.put(part)
        return
    if is_scratch(target):
        yield target
        return
    target = Path(target)
    with new_part(target) as part:
        with report_full_disk(target):
            yield part
        part.replace(target)


def check_file(file: Path) -> None:
    """Check that `file` is a file that can be read; a pipe would wait for its writer.

    Raises:
        UsageError: it cannot.
    """
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            raise OSError(0, "it is a folder, a device or a pipe")
        if not isinstance(file, StorePath):
            with opened(file):
                pass
    except AddressError:
        raise
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({system_reason(error)}): name a file") from None


def check_folder(folder: Path) -> None:
    """Check that `folder` is there or can be made, and that files can be written into it.

    Raises:
        WriteError: it cannot.
    """
    if isinstance(folder, StorePath):
        _check_store_folder(folder)
        return
    try:
        place = folder.absolute()
        while True:
            try:
                mode = place.stat().st_mode
                break
            except FileNotFoundError:
                if os.path.lexists(place):
                    raise OSError(0, "a link leads nowhere") from None
                place = place.parent
        if not stat.S_ISDIR(mode):
            raise OSError(0, "a file has its name")
        if not os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            raise OSError(0, "permission denied")
    except OSError as error:
        raise WriteError(
            f"cannot write into {folder} ({system_reason(error)}): choose another folder"
        ) from None


def _check_store_folder(folder: StorePath) -> None:
    """Write an object into a folder of a store, and remove it."""
    try:
        if folder.is_file():
            raise OSError(0, "a file has its name")
        probe = temporary(folder)
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)
    except AddressError:
        raise
    except OSError as error:
        raise WriteError(
            f"cannot write into {folder} ({system_reason(error)}): choose another folder"
        ) from None


def check_target(target: Path) -> None:
    """Check that `atomic_write` can write `target`, before much is computed for it.

    Raises:
        WriteError: it cannot.
    """
    if isinstance(target, StorePath):
        return  # `check_folder` has tried its folder
    with new_part(Path(target)):
        pass


def flush(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk (fsync)."""
    if isinstance(path, StorePath):
        return  # an object that is there is written
    with opened(path) as handle:
        try:
            os.fsync(handle)
        except OSError:
            if not path.is_dir():  # not every file system can do this for folders
                raise


def flush_tree(folder: Path) -> None:
    """Wait until everything in `folder`, and its own name, is on the disk."""
    if isinstance(folder, StorePath):
        return
    for path in (*folder.rglob("*"), folder, folder.parent):
        if not path.is_symlink():
            with suppress(FileNotFoundError):  # a temporary file of another process
                flush(path)


def signature(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written to or replaced; None if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def write_text(path: Path, text: str) -> None:
    """Replace the contents of `path` atomically; bytes and name are on the disk afterwards.

    Raises:
        WriteError: it cannot be written.
    """
    if isinstance(path, StorePath):
        path.write_text(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8")
        flush(part)
    flush(path.parent)


@contextmanager
def new_folder(path: Path, *, replace: bool = False, last: str = "") -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` when the block succeeds.

    When the block raises, the folder is removed and `path` is as it was. For a folder in a store
    the temporary folder is on this machine, and its files become objects one after the other.

    Args:
        replace: let it take the place of a folder that is there. Otherwise there must be none, or
            an empty one.
        last: the file in it that is written last to a store; whoever finds it finds all.

    Raises:
        WriteError: there is no room for it.
    """
    if isinstance(path, StorePath):
        with scratch(path.name) as folder:
            yield folder
            publish(folder, path, last=last)
        return
    if path.is_symlink():  # which a folder cannot replace
        path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path.parent)
    with new_part_folder(path.parent) as outer:
        with report_full_disk(path):
            (inner := outer / "new").mkdir()
            yield inner
        if replace and path.exists():
            os.replace(path, outer / "old")
        os.replace(inner, path)


def publish(folder: Path, target: StorePath, *, last: str = "") -> None:
    """Write the files of a folder of this machine into a folder of a store.

    What is there under other names is removed at the end.

    Args:
        last: the file that is written after the others; whoever finds it finds all of them.
    """
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    before = target.files()
    for name in sorted(names, key=lambda name: (name == last, name)):
        (target / name).put(folder / name)
    for old in before:
        if str(old.relative_to(target)) not in names:
            old.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder that background threads may still be writing to, after a write failed."""
    if isinstance(folder, StorePath):
        for file in folder.files():
            file.unlink(missing_ok=True)
        return
    for _ in range(20):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.05)
        if not folder.exists():
            return


def names_in(folder: Path) -> list[str]:
    """Return the names in a folder; there are none where there is no folder."""
    if isinstance(folder, StorePath):
        return folder.names()
    try:
        return [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []


def rename(source: Path, target: Path) -> None:
    """Give a file another name, in place of what has that name; in a store by a copy.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if isinstance(source, StorePath):
        target.write_bytes(source.read_bytes())
        source.unlink(missing_ok=True)
    else:
        os.replace(source, target)


def remove_tree(path: Path) -> None:
    """Remove a folder and everything in it, if it is there."""
    if isinstance(path, StorePath):
        remove_folder(path)
    else:
        shutil.rmtree(path, ignore_errors=True)
