"""Files of this machine on their way to a store or from one, which nobody else sees.

They lie in a locked folder of this process under numbers, and are gone after their use. That of a
process that was killed is removed by the next one.
"""

import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mfm_jax.errors import WriteError, system_reason
from mfm_jax.runtime import signals
from mfm_jax.storage.locks import new_locked
from mfm_jax.storage.parts import report_full_disk, short_suffix, sweep, temporary

FOLDER = "MFM_FILES"
"""The environment variable that names another folder for what lies in stores."""


@dataclass(eq=False)
class _Own:
    """A folder of this process, which is there as long as something is in it."""

    path: Path
    handle: int  # has it locked
    undone: AbstractContextManager[None]
    users: int = 0

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.handle)
        self.undone.__exit__(None, None, None)


_own: dict[tuple[int, Path], _Own] = {}  # by the process, as another may be forked meanwhile
_lock = threading.RLock()  # the end of a use may come from the garbage collector
_numbers = itertools.count()
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)


def copies_folder() -> Path:
    """Return the folder of this machine for what lies in stores."""
    named, cache = os.environ.get(FOLDER), os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return (Path(named) if named else Path(cache) / "mfm-jax" / "files").expanduser()


@contextmanager
def scratch_file(name: str) -> Iterator[Path]:
    """Yield the path of a file that is not there, with the suffix of `name`; it is gone afterwards.

    Raises:
        WriteError: its folder cannot be made.
    """
    with _own_folder() as own:
        with report_full_disk(own):
            own.mkdir(parents=True, exist_ok=True)  # the user may have emptied that of the copies
        file = own / f"{next(_numbers)}{short_suffix(Path(name))}"
        try:
            yield file
        finally:
            try:
                file.unlink(missing_ok=True)
            except OSError:  # it has become a folder
                shutil.rmtree(file, ignore_errors=True)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Yield an empty folder to write into, which is removed afterwards.

    Raises:
        WriteError: it cannot be made, or there is no room.
    """
    with scratch_file("") as alone, report_full_disk(alone):
        folder = alone / name
        folder.mkdir(parents=True)
        yield folder


def is_scratch(file: Path) -> bool:
    """Return whether a file is that of a `scratch_file`."""
    return any(own.path == file.parent for own in list(_own.values()))


@contextmanager
def _own_folder() -> Iterator[Path]:
    key = os.getpid(), copies_folder() / "outgoing"
    with _lock:
        own = _own.get(key) or _made(key[1])
        _own[key] = own
        own.users += 1
    try:
        yield own.path
    finally:
        with _lock:
            own.users -= 1
            if not own.users:
                del _own[key]
                own.close()


def _made(parent: Path) -> _Own:
    path = temporary(parent)
    undone = signals.undone(partial(_remove_own, path, os.getpid()))
    undone.__enter__()
    try:
        parent.mkdir(parents=True, exist_ok=True)
        sweep(parent)
        return _Own(path, new_locked(path, folder=True), undone)
    except OSError as error:
        undone.__exit__(None, None, None)
        raise WriteError(
            f"cannot write into {parent} ({system_reason(error)}): name another folder with "
            f"{FOLDER}"
        ) from None


def _remove_own(path: Path, process: int) -> None:
    if os.getpid() == process:  # and not one that was forked from it
        shutil.rmtree(path, ignore_errors=True)
