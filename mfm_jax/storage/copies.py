"""Copies on this machine of what lies in an object store, for libraries that need files.

They lie in a folder of the user whose size is bounded, each under a digest of its address and its
version: a copy never changes, and a new version is another copy. What is in use is never removed.
"""

import base64
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from mfm_jax.errors import UserError, WriteError, system_reason
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.locks import is_at
from mfm_jax.storage.objects import Info, version
from mfm_jax.storage.parts import report_full_disk
from mfm_jax.storage.retries import AddressError
from mfm_jax.storage.scratch import FOLDER, copies_folder, scratch_file

LIMIT = "MFM_FILES_GB"
"""The environment variable that says how large the folder may get, in units of 1e9 bytes."""
DEFAULT_LIMIT = 100.0
SMALL = 8 << 20
"""Bytes up to which a file is read whole, into memory and with one request where it can be."""
LISTED = ".complete"
"""The file of a copy that appears when everything is there."""

_kept: dict[str, tuple[Path, int]] = {}


@contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a file or folder of this machine with the contents of `path`, which may be one.

    A copy goes when the block ends, unless another block or process uses it. A `UserError` of the
    block names the address in place of the copy.

    Raises:
        OSError: there is nothing at `path`, or it cannot be read.
        WriteError: there is no room for a copy.
    """
    if not isinstance(path, StorePath):
        yield path
        return
    files, contents = _found(path)
    if contents is not None:  # to share it would take longer than to write it
        with scratch_file(path.name) as copy, naming(path, copy):
            _check_contents(path, contents, files[path])
            with report_full_disk(copy):
                copy.write_bytes(contents)
            yield copy
        return
    copy, handle = _fetched(path, files)
    try:
        with naming(path, copy):
            yield copy
    finally:
        _remove_unused(copy.parent, handle)


def kept_copy(path: Path) -> Path:
    """Return a file or folder with the contents of `path` that stays as long as this process.

    It is there for later processes too, until room is needed.

    Raises:
        OSError: there is nothing at `path`, or it cannot be read.
        WriteError: there is no room for a copy.
    """
    if not isinstance(path, StorePath):
        return path
    copy, handle = _fetched(path, *_found(path))
    if (entry := str(copy)) in _kept:
        os.close(handle)
    else:
        _kept[entry] = copy, handle
    return copy


@contextmanager
def naming(path: Path, copy: Path) -> Iterator[None]:
    """Let the errors of the block name `path` where they name its copy."""
    try:
        yield
    except UserError as error:
        error.args = tuple(
            text.replace(str(copy), str(path)) if isinstance(text, str) else text
            for text in error.args
        )
        raise


def _found(path: StorePath) -> tuple[dict[StorePath, Info], bytes | None]:
    """Return the files at `path` and, of a small one, the contents, which came with the answer."""
    try:
        info, contents = path.read_small(SMALL)
    except FileNotFoundError:
        if files := path.files():
            return files, None
        raise
    return {path: info}, contents


def _fetched(
    path: StorePath, files: Mapping[StorePath, Info], contents: bytes | None = None
) -> tuple[Path, int]:
    """Return a complete copy, and the handle that keeps it from being removed."""
    names = {str(file.relative_to(path)): info for file, info in files.items()}
    told = f"{path}\n" + "\n".join(f"{name} {version(info)}" for name, info in names.items())
    entry = copies_folder() / hashlib.sha256(told.encode()).hexdigest()[:32]
    handle = _held(entry)
    try:
        os.utime(entry)
        copy = entry / path.name
        if not _complete(entry, copy, names):
            _fetch(entry, copy, files, names, contents)
    except BaseException:
        os.close(handle)
        raise
    return copy, handle


def _complete(entry: Path, copy: Path, names: Mapping[str, Info]) -> bool:
    if not (entry / LISTED).exists():
        return False
    return all(_size(copy / name) == info["size"] for name, info in names.items())


def _size(file: Path) -> int | None:
    with suppress(OSError):
        return file.stat().st_size
    return None


def _fetch(
    entry: Path,
    copy: Path,
    files: Mapping[StorePath, Info],
    names: Mapping[str, Info],
    contents: bytes | None,
) -> None:
    """Copy the files that are not there yet; what an earlier process has copied is used.

    Args:
        contents: of the only file, if they are known.
    """
    todo = {
        file: (copy / name, info)
        for (file, info), name in zip(files.items(), names, strict=True)
        if _size(copy / name) != info["size"]
    }
    _make_room(entry, sum(info["size"] for _, info in todo.values()))
    try:
        for file, (target, info) in todo.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=entry, delete=False) as part:
                pass
            try:
                if contents is not None:
                    Path(part.name).write_bytes(contents)
                elif info["size"] > SMALL:
                    file.get(Path(part.name))
                else:
                    Path(part.name).write_bytes(file.read_bytes())
                _check(file, Path(part.name), info)
                _name(Path(part.name), target, info["size"])
            finally:
                Path(part.name).unlink(missing_ok=True)
        (entry / LISTED).touch()
    except AddressError:
        raise
    except OSError as error:
        if error.filename is not None and str(error.filename).startswith(str(entry)):
            raise WriteError(
                f"cannot write {entry} ({system_reason(error)}): make room there, or name another "
                f"folder with {FOLDER}"
            ) from None
        raise


def _name(part: Path, target: Path, size: int) -> None:
    """Give a file its name. One that another has just written stays, as it may be in use."""
    try:
        os.link(part, target)
    except FileExistsError:
        if _size(target) != size:
            os.replace(part, target)
    except OSError:  # the file system knows no links
        os.replace(part, target)


def _check(file: StorePath, part: Path, info: Info) -> None:
    """Check the size and, where the store tells it, the digest of a copy.

    Raises:
        AddressError: it is not what the store has listed.
    """
    with part.open("rb") as read:
        digest = hashlib.file_digest(read, "md5").hexdigest() if md5_of(info) else None
    _compare(file, part.stat().st_size, digest, info)


def _check_contents(file: StorePath, contents: bytes, info: Info) -> None:
    """Check the same of what will be written to a copy."""
    _compare(file, len(contents), hashlib.md5(contents).hexdigest(), info)


def _compare(file: StorePath, size: int, digest: str | None, info: Info) -> None:
    known = md5_of(info)
    if size != info["size"] or (known and known != digest and file.tells_md5()):
        raise AddressError(f"{file} was changed while it was read, or damaged: try again")


def md5_of(info: Info) -> str | None:
    """Return the MD5 that a store tells of an object, if it does.

    Of an object of S3 it may be another number (`StorePath.tells_md5`).
    """
    if known := info.get("md5Hash"):
        return base64.b64decode(known).hex()
    tag = str(info.get("ETag", "")).strip('"')  # of S3, unless it came in several parts
    return tag if len(tag) == 32 and set(tag) <= set("0123456789abcdef") else None


def _held(entry: Path) -> int:
    """Make the folder of a copy, and lock it against being removed."""
    while True:
        try:
            with suppress(FileExistsError):  # `exist_ok` would look at it, while another removes it
                entry.mkdir(parents=True)
            handle = os.open(entry, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # another process has just removed it
        except OSError as error:
            raise WriteError(
                f"cannot write {entry} ({system_reason(error)}): name another folder with {FOLDER}"
            ) from None
        with suppress(OSError):  # the file system may know no locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        if is_at(handle, entry):
            return handle
        os.close(handle)


def _remove_unused(entry: Path, handle: int) -> None:
    """End the use of a copy, and remove it unless another uses it."""
    try:
        with suppress(OSError):  # another uses it
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(entry, ignore_errors=True)
    finally:
        os.close(handle)


def _make_room(entry: Path, size: int) -> None:
    """Remove the copies that were not used for longest, until `size` bytes fit.

    Raises:
        WriteError: they do not fit.
    """
    given = os.environ.get(LIMIT)
    try:
        limit = float(given or DEFAULT_LIMIT) * 1e9
    except ValueError:
        raise WriteError(f"{LIMIT} is {given!r}: give a number, such as 100") from None
    others: list[tuple[float, Path, int]] = []  # when each was last used, and its bytes
    for other in entry.parent.iterdir():
        if other != entry and other.name != "outgoing":
            with suppress(OSError):  # its user has just removed it
                bytes_there = sum(f.stat().st_size for f in other.rglob("*") if f.is_file())
                others.append((other.stat().st_mtime, other, bytes_there))
    used = sum(bytes_there for *_, bytes_there in others) + size
    for _, other, bytes_there in sorted(others):
        if used <= limit:
            return
        with suppress(OSError):
            handle = os.open(other, os.O_RDONLY)
            _remove_unused(other, handle)
        if not other.exists():
            used -= bytes_there
    if used > limit:
        raise WriteError(
            f"{used / 1e9:.1f} GB do not fit into {entry.parent}, which may have {limit / 1e9:g} "
            f"GB: give it more with {LIMIT}"
        )
