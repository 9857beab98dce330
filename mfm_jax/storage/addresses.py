"""Files in object stores, under paths with the interface of `pathlib`.

`gs://bucket/folder/file` and `s3://...` are read and written with the credentials that gcsfs and
s3fs find. A store has objects and no folders: a folder is there while an object's name begins with
it, and an object appears whole under its name or not at all. Nothing can be renamed, locked or
memory-mapped there; `mfm_jax.storage.files` and `mfm_jax.storage.locks` say what takes its place.
"""

import functools
import io
import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NoReturn

from mfm_jax.storage.objects import Info, Objects, changed, open_library, version
from mfm_jax.storage.retries import asked

LIBRARIES = {"gs": "gcsfs", "s3": "s3fs"}
"""The library for the addresses of each kind."""
BEGINS = re.compile(rf"({'|'.join(LIBRARIES)})://?(?=[^/])")


class StorePath(type(Path())):  # type: ignore[misc]
    """The path of an object, or of a folder of objects, in a store."""

    __slots__ = ()

    def __str__(self) -> str:
        """Return the address, with both slashes, of which `pathlib` keeps one."""
        scheme, found, rest = (text := super().__str__()).partition(":/")
        return f"{scheme}://{rest}" if found and scheme in LIBRARIES else text

    def __fspath__(self) -> str:
        return str(self)

    @property
    def objects(self) -> Objects:
        """The objects of stores of this kind."""
        return objects_of(str(self).partition(":")[0])

    @property
    def key(self) -> str:
        """The bucket and the path in it."""
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
    def info(self) -> Info:
        """Return what the store tells of the object or the folder.

        Raises:
            OSError: there is none, or the store cannot be asked.
        """
        return self.objects.info(self.key)

    @asked
    def tells_md5(self) -> bool:
        """Return whether what looks like the MD5 of an object is that: not so in S3 with some keys.

        The ETag of an object that is encrypted with a key of KMS or of its owner is another number.
        """
        return self.objects.tells_md5(self.key)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return kind, size and time of change; the number of the inode tells the version."""
        info = self.info()
        folder = info["type"] == "directory"
        mode = (stat.S_IFDIR | 0o755) if folder else (stat.S_IFREG | 0o644)
        when = changed(info)
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
        return self.objects.read(self.key)

    @asked
    def read_small(self, most: int) -> tuple[Info, bytes | None]:
        """Return what the store tells of an object, and its bytes if these are at most `most`.

        Raises:
            FileNotFoundError: there is none; there may be a folder.
        """
        return self.objects.read_small(self.key, most)

    def read_text(self, encoding: str | None = None, *args: Any, **kwargs: Any) -> str:
        """Return the contents, as UTF-8 by default."""
        with self.open("r", -1, encoding, *args, **kwargs) as file:
            return file.read()

    @asked
    def write_bytes(self, data: Any) -> int:
        """Write an object, which takes the place of one with its name."""
        self.objects.write(self.key, bytes(data))
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
        try:
            self.objects.create(self.key, data)
        except FileExistsError:
            # The answer to an earlier try of this very call may have been lost.
            if self.read_bytes() != data:
                raise

    @asked
    def put(self, file: Path) -> None:
        """Write a file of this machine as an object, which takes the place of one with its name."""
        self.objects.put(self.key, file)

    @asked
    def get(self, file: Path) -> None:
        """Write the contents into a file of this machine."""
        self.objects.get(self.key, file)

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
    def _listed(self) -> list[Info]:
        return self.objects.folder(self.key)

    @asked
    def _found(self) -> dict[str, Info]:
        return self.objects.find(self.key)

    @asked
    def names(self, begin: str = "") -> list[str]:
        """Return the names of what is in a folder that begin in a way, if there are any."""
        with suppress(FileNotFoundError):
            return self.objects.names(self.key, begin)
        return []

    def iterdir(self) -> Iterator["StorePath"]:
        """Yield what is in a folder."""
        for info in self._listed():
            name = info["name"].rstrip("/")
            if name != self.key:  # an object may have the name of the folder
                yield self._at(name)

    def files(self) -> dict["StorePath", Info]:
        """Return all objects in a folder and those in it, with what the store tells of each."""
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
        self.objects.remove(self.key, missing_ok=missing_ok)

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


@functools.cache
def objects_of(scheme: str) -> Objects:
    """Return the objects of one kind of addresses.

    Raises:
        AddressError: the library for them is not installed.
    """
    library = open_library(scheme, LIBRARIES[scheme])
    if scheme == "gs":
        from mfm_jax.storage.google import GoogleObjects

        return GoogleObjects(library)
    from mfm_jax.storage.amazon import AmazonObjects

    return AmazonObjects(library)
