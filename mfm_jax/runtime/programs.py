"""Compiled programs are kept between commands, in a folder of the user whose size is bounded.

JAX does the work (its persistent compilation cache). This chooses the folder, and repairs what a
process that was killed while it wrote has left there.
"""

import hashlib
import importlib.metadata
import os
import platform
import shutil
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path

FOLDER = "MFM_PROGRAMS"
"""The environment variable that names another folder."""

SIZE = 4 << 30
"""Bytes at most; what was not used for longest is dropped."""

WORTH = 0.1
"""Seconds of compilation from which on a program is kept."""

UNUSED = 60 * 24 * 3600
"""Seconds after which the programs of another version or another processor are removed."""

ENTRY, USED = "-cache", "-atime"
"""The files of a program in JAX's cache: itself, and when it was last used."""


def keep_programs() -> None:
    """Let JAX keep compiled programs in this process and in those that it starts.

    Environment variables of JAX that are set already stay as they are. Where the folder cannot be
    written, nothing is kept.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = programs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)
        if not os.access(folder, os.W_OK | os.X_OK):
            return
    except OSError:
        return
    _remove_unused(folder)
    _repair(folder)
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_compilation_cache_max_size": SIZE,
        "jax_persistent_cache_min_compile_time_secs": WORTH,
    }
    for name, value in settings.items():
        if name.upper() in os.environ:
            continue
        os.environ[name.upper()] = str(value)  # of other processes that this one starts, too
        if jax := sys.modules.get("jax"):
            jax.config.update(name, value)
    # A full disk or a damaged program costs a compilation and nothing else.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def programs_folder() -> Path:
    """Return the folder for the programs of this version of XLA and of this processor."""
    named = os.environ.get(FOLDER)
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    base = Path(named).expanduser() if named else Path(cache).expanduser() / "mfm-jax/programs"
    # XLA compiles for the processor at hand, and a home may be shared by several kinds.
    told = [importlib.metadata.version("jaxlib"), platform.machine(), *instructions()]
    return base / hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


def instructions() -> list[str]:
    """Return what the processor can do, as far as Linux tells."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        return [next((line for line in file if line.startswith(("flags", "Features"))), "")]
    return [platform.processor()]


def _remove_unused(folder: Path) -> None:
    with suppress(OSError):
        for other in folder.parent.iterdir():
            if other != folder and time.time() - other.stat().st_mtime > UNUSED:
                shutil.rmtree(other, ignore_errors=True)


def _repair(folder: Path) -> None:
    """Remove programs that were not written whole: JAX writes when they were used last of all.

    Otherwise it would write nothing any more.
    """
    from filelock import FileLock, Timeout

    with suppress(OSError, Timeout), FileLock(folder / ".lockfile", timeout=0):
        names = {path.name for path in folder.iterdir()}
        for name in names:
            if name.endswith(ENTRY) and name.removesuffix(ENTRY) + USED not in names:
                (folder / name).unlink(missing_ok=True)
