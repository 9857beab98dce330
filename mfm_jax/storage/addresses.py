"""Files in object stores, under paths with the interface of `pathlib`.

`gs://bucket/folder/file` and `s3://...` are read and written by fsspec (gcsfs, s3fs), with the
credentials that those find. A store has objects and no folders: a folder is there while an object's
name begins with it, and an object appears whole under its name or not at all. Nothing can be
renamed, locked or memory-mapped there; `mfm_jax.storage.files` and `mfm_jax.storage.locks` say
what takes its place.
"""

import functools
import importlib
import io
import os
import re
import secrets
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

from mfm_jax.errors import UserError, first_line

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
"""The library that reads and writes the addresses of each kind."""
ORIGINS = ("aiohttp", "botocore", "fsspec", "gcsfs", "google", "requests", "urllib3")
"""The packages whose errors are those of a store."""
BEGINS = re.compile(rf"({'|'.join(LIBRARIES)})://?(?=[^/])")
PATIENCE = 120.0
"""Seconds for which a store that does not answer, or says that it cannot, is asked again."""
PAUSE = 2.0
"""Seconds between two tries, each of which the library repeats by itself as well."""

P = ParamSpec("P")
R = TypeVar("R")


class AddressError(UserError, OSError):
    """A store that does not do what it is asked; the message says what to do.

    Like the errors of a disk it is an OSError: code that can do without a file goes on without it.
    """


def asked(call: Callable[P, R]) -> Callable[P, R]:
    """Let a method of `StorePath` try again while the store is not there.

    It raises the errors that a disk does, where there is one.

    Raises:
        FileNotFoundError: as on a disk.
        FileExistsError: as on a disk.
        AddressError: the store refuses, or has not answered for `PATIENCE` seconds.
    """

    @functools.wraps(call)
    def patient(*args: P.args, **kwargs: P.kwargs) -> R:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not _may_pass(error) or time.monotonic() > until:
                    _tell(str(args[0]), error)
                time.sleep(PAUSE)

    return patient


class StorePath(type(Path())):  # type: ignore[misc]
    """The path of an object, or of a folder of objects, in a store."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the address, with both slashes, of which `pathlib` keeps one."""
        return BEGINS.sub(r"\1://", super().__str__(), count=1)

    def __fspath__(self) -> str:
        return str(self)

    @property
    def store(self) -> Any:
        """The fsspec file system that holds it."""
        return file_system(str(self).partition(":")[0])

    @property
    def key(self) -> str:
        """The name in the file system: the bucket and the path in it."""
        return str(self).partition("://")[2]

    def is_absolute(self) -> bool:
        """Return True: an address needs no current folder."""
        return True

    def absolute(self) -> "StorePath":
        """Return the path itself."""
        return self

    def resolve(self, strict: bool = False) -> "StorePath":
        """Return the path itself: a store has no links."""
        return self

    def expanduser(self) -> "StorePath":
        """Return the path itself."""
        return self

    def is_symlink(self) -> bool:
        """Return False: a store has no links."""
        return False

    @asked
    def info(self) -> dict[str, Any]:
        """Return what fsspec knows of the object or the folder.

        Raises:
            OSError: there is none, or the store cannot be asked.
        """
        return self.store.info(self.key)

    @asked
    def tells_md5(self) -> bool:
        """Return whether what looks like the MD5 of an object is that: not so in S3 with some keys.

        The ETag of an object that is encrypted with a key of KMS or of its owner is another number.
        """
        if not str(self).startswith("s3:"):
            return True
        bucket, _, key = self.key.partition("/")
        told = self.store.call_s3("head_object", Bucket=bucket, Key=key)
        kind = told.get("ServerSideEncryption", "")
        return not kind.startswith("aws:kms") and "SSECustomerAlgorithm" not in told

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return kind, size and time of change; the number of the inode tells the version."""
        info = self.info()
        folder = info["type"] == "directory"
        mode = (stat.S_IFDIR | 0o755) if folder else (stat.S_IFREG | 0o644)
        when = _changed(info)
        number = 0 if folder else hash(version(info)) & (1 << 62) - 1
        size, whole = info.get("size") or 0, int(when)
        return os.stat_result(
            (mode, number, 0, 1, 0, 0, size, whole, whole, whole, when, when, when),
            {f"st_{name}_ns": round(when * 1e9) for name in ("atime", "mtime", "ctime")},
        )

    def lstat(self) -> os.stat_result:
        """Return the same as `stat`."""
        return self.stat()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Return whether there is an object, or a folder of objects."""
        return self._kind() is not None

    def is_file(self, **kwargs: Any) -> bool:
        """Return whether there is an object."""
        return self._kind() == "file"

    def is_dir(self, **kwargs: Any) -> bool:
        """Return whether there are objects in it."""
        return self._kind() == "directory"

    def _kind(self) -> str | None:
        try:
            return self.info()["type"]
        except FileNotFoundError:
            return None

    @asked
    def read_bytes(self) -> bytes:
        """Return the contents."""
        return self.store.cat_file(self.key)

    def read_text(self, encoding: str | None = None, *args: Any, **kwargs: Any) -> str:
        """Return the contents, as UTF-8 by default."""
        with self.open("r", -1, encoding, *args, **kwargs) as file:
            return file.read()

    @asked
    def write_bytes(self, data: Any) -> int:
        """Write an object, which takes the place of one with its name."""
        self.store.pipe_file(self.key, bytes(data))
        return len(data)

    def write_text(self, data: str, encoding: str | None = None, *args: Any, **kwargs: Any) -> int:
        """Write an object of text, as UTF-8 by default."""
        return self.write_bytes(data.encode(encoding or "utf-8"))

    @asked
    def create(self, data: bytes) -> None:
        """Write an object, unless there is one with its name, of whatever process.

        Raises:
            FileExistsError: there is one.
            AddressError: the store would let two processes do so.
        """
        _check_exclusive(self.parent)
        try:
            self._create(data)
        except FileExistsError:
            # The answer to an earlier try of this very call may have been lost.
            if self.read_bytes() != data:
                raise

    def _create(self, data: bytes) -> None:
        try:
            self.store.pipe_file(self.key, data, mode="create")
        except OSError as error:
            if _code(error) == 412:  # which not every store of S3 tells as s3fs expects it
                raise FileExistsError(17, os.strerror(17), str(self)) from None
            raise

    @asked
    def put(self, file: Path) -> None:
        """Write a file of this machine as an object, which takes the place of one with its name."""
        self.store.put_file(os.fspath(file), self.key)

    @asked
    def get(self, file: Path) -> None:
        """Write the contents into a file of this machine."""
        self.store.get_file(self.key, os.fspath(file))

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """Open an object, whole in memory; one that is written is there when it is closed.

        Modes: r, w and a, of text and of bytes. `mfm_jax.storage.copies` is for large files.
        """
        kind = mode.replace("b", "").replace("t", "").replace("U", "")
        if kind not in ("r", "w", "a"):
            raise io.UnsupportedOperation(f"{self} is in a store, which knows no mode {mode}")
        if kind == "r":
            raw: io.BytesIO = io.BytesIO(self.read_bytes())
        else:
            raw = _Written(self, self._bytes_so_far() if kind == "a" else b"")
        if "b" in mode:
            return raw
        return _Text(raw, encoding=encoding or "utf-8", errors=errors, newline=newline)

    def _bytes_so_far(self) -> bytes:
        try:
            return self.read_bytes()
        except FileNotFoundError:
            return b""

    @asked
    def _listed(self) -> list[dict[str, Any]]:
        return self.store.ls(self.key, detail=True)

    @asked
    def _found(self) -> dict[str, dict[str, Any]]:
        return self.store.find(self.key, detail=True)

    def iterdir(self) -> Iterator["StorePath"]:
        """Yield what is in a folder."""
        for info in self._listed():
            name = info["name"].rstrip("/")
            if name != self.key:  # an object may have the name of the folder
                yield self._at(name)

    def files(self) -> dict["StorePath", dict[str, Any]]:
        """Return all objects in a folder and the folders in it, and what fsspec knows of each."""
        return {self._at(name): info for name, info in sorted(self._found().items())}

    def rglob(self, pattern: str, **kwargs: Any) -> Iterator["StorePath"]:
        """Yield the objects and folders below this one whose name has a pattern."""
        found: set[StorePath] = set()
        for path in self.files():
            for each in (path, *path.parents):
                if each == self:
                    break
                found.add(each)
        yield from sorted(path for path in found if fnmatchcase(path.name, pattern))

    def glob(self, pattern: str, **kwargs: Any) -> Iterator["StorePath"]:
        """Yield what has a pattern: of a name, or `**` for folders at any depth."""
        first, _, rest = pattern.partition("/")
        if first == "**":
            yield from self.rglob(rest or "*")
            if rest and "/" in rest:
                raise NotImplementedError(f"{pattern}: a store knows ** and one name after it")
            return
        try:
            there = sorted(self.iterdir())
        except FileNotFoundError:
            return
        for path in there:
            if fnmatchcase(path.name, first):
                yield from path.glob(rest) if rest else [path]

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing, as an object makes its folders, unless there is something with this name."""
        if not exist_ok and self.exists():
            raise FileExistsError(17, os.strerror(17), str(self))

    def rmdir(self) -> None:
        """Do nothing, as a folder ends with its last object.

        Raises:
            OSError: there are objects in it.
        """
        if self.is_dir():
            raise OSError(39, os.strerror(39), str(self))

    @asked
    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object."""
        try:
            if not missing_ok and str(self).startswith("s3:"):
                self.store.info(self.key)  # S3 is content to remove what is not there
            self.store.rm_file(self.key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Make an empty object, unless there is one."""
        try:
            self.create(b"")
        except FileExistsError:
            if not exist_ok:
                raise

    def samefile(self, other: os.PathLike[str] | str) -> bool:
        """Return whether both are the same address."""
        return str(self) == os.fspath(other)

    def rename(self, target: Any) -> NoReturn:
        """Raise, as a store cannot rename."""
        raise io.UnsupportedOperation(f"{self} is in a store, which cannot rename")

    replace = rename

    def _at(self, key: str) -> "StorePath":
        return type(self)(f"{str(self).partition(':')[0]}://{key}")


class _Written(io.BytesIO):
    """The bytes of an object, which is written when the file is closed and nothing has failed."""

    def __init__(self, path: StorePath, begin: bytes) -> None:
        super().__init__()
        self.write(begin)
        self._path: StorePath | None = path

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None:
            self.discard()
        self.close()

    def discard(self) -> None:
        """Write nothing when it is closed."""
        self._path = None

    def close(self) -> None:
        """Write the object."""
        path, self._path = self._path, None
        if path is not None:
            path.write_bytes(self.getvalue())
        super().close()


class _Text(io.TextIOWrapper):
    """Text over the bytes of an object."""

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if kind is not None and isinstance(self.buffer, _Written):
            self.buffer.discard()
        self.close()


def is_address(text: str) -> bool:
    """Return whether a name is one of an object store that can be read and written."""
    return BEGINS.match(text) is not None and "://" in text


def is_mistyped_address(text: str) -> bool:
    """Return whether a name is an address but for a slash, and no file of this machine."""
    begins = BEGINS.match(text)
    return begins is not None and "://" not in text and not os.path.lexists(begins[0].rstrip("/"))


def version(info: dict[str, Any]) -> str:
    """Return what is another with each version of an object."""
    names = ("generation", "md5Hash", "ETag", "etag", "VersionId", "size")
    return " ".join(str(info[name]) for name in names if info.get(name))


@functools.cache
def file_system(scheme: str) -> Any:
    """Return the fsspec file system of one kind of addresses.

    It asks the store anew each time: other processes write there too.

    Raises:
        AddressError: its library is not installed.
    """
    import fsspec
    from fsspec.config import conf

    # Orbax and etils open these as well, through `fsspec.filesystem`.
    conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    # gcsfs sends files in one piece up to 5 MB.
    warnings.filterwarnings("ignore", "Sending a large body directly with raw bytes")
    library = LIBRARIES[scheme]
    try:
        importlib.import_module(library)
    except ImportError:
        raise AddressError(
            f"{scheme}:// needs {library}: pip install 'mfm-jax[{scheme}]', or mount the bucket"
        ) from None
    try:
        return fsspec.filesystem(scheme)
    except Exception as error:
        raise AddressError(f"{scheme}:// cannot be used ({first_line(error)}): log in") from None


_exclusive: set[str] = set()
"""Buckets that are known to refuse a second object of one name."""


def _check_exclusive(folder: StorePath) -> None:
    """Check once that the store refuses a second object of one name where this is asked for.

    Google's and Amazon's do. Other servers with the interface of S3 may not know the header for it
    (If-None-Match), and then let each of two workers believe that it is alone.

    Raises:
        AddressError: it does not.
    """
    bucket = "/".join(str(folder).split("/")[:3])
    if bucket in _exclusive or bucket.startswith("gs:"):
        return
    probe = folder / f".probe-{secrets.token_hex(8)}"
    try:
        probe._create(b"1")
        try:
            probe._create(b"2")
        except FileExistsError:
            _exclusive.add(bucket)
            return
    finally:
        probe.unlink(missing_ok=True)
    raise AddressError(
        f"the store of {bucket} lets two workers write one object (it does not know "
        "If-None-Match), so that nothing can be divided there: use another store, or one worker "
        "and a folder of this machine"
    )


def _changed(info: dict[str, Any]) -> float:
    """Return when an object was written, as unix time; 0 if the store does not say."""
    for name in ("mtime", "updated", "LastModified"):
        when = info.get(name)
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, datetime):
            return when.timestamp()
    return 0.0


def _code(error: Exception) -> int | None:
    """Return the HTTP status in a library's error, or in the one that it was made of (s3fs)."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    response = getattr(error, "response", None)
    found = getattr(error, "code", None) or getattr(error, "status", None)
    if found is None and isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(str(found)) if str(found).isdigit() else None


def _may_pass(error: Exception) -> bool:
    """Return whether an error is one of the network, or of a store that has too much to do."""
    code = _code(error)
    if code is not None:
        return code in (408, 409, 429) or 500 <= code < 600  # 409: another writes this object now
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | AddressError):
        return False
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return _origin(error) in ("aiohttp", "requests", "urllib3") or type(error).__name__ in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ChecksumError",
        "TransportError",
    )


def _origin(error: Exception) -> str:
    """Return the package that an error is of."""
    return type(error).__module__.partition(".")[0]


def _tell(name: str, error: Exception) -> NoReturn:
    if isinstance(error, AddressError | io.UnsupportedOperation):
        raise error
    for kind, number in ((FileNotFoundError, 2), (FileExistsError, 17)):
        if isinstance(error, kind):
            raise kind(number, os.strerror(number), name) from None
    reason, code = first_line(error)[:200], _code(error)
    words = reason.lower()
    if code in (401, 403) or any(w in words for w in ("forbidden", "credentials", "permission")):
        raise AddressError(
            f"{name} is refused ({reason}): log in, or ask for the permission"
        ) from None
    if code == 404:
        raise FileNotFoundError(2, os.strerror(2), name) from None
    if _may_pass(error):
        raise AddressError(
            f"{name} cannot be reached ({reason}): see that the store is up, and start again"
        ) from None
    if isinstance(error, OSError | ValueError) or _origin(error) in ORIGINS:
        raise AddressError(f"{name} cannot be used ({reason}): check the address") from None
    raise error
