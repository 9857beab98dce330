"""The objects of a store, by the library that knows it (fsspec: gcsfs, s3fs).

A key is a bucket and the name of an object in it, as in `bucket/folder/file`. The errors are those
of the library; `mfm_jax.storage.retries` turns them into ours.
"""

import importlib
import os
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

from mfm_jax.errors import first_line
from mfm_jax.storage.retries import AddressError

Info = dict[str, Any]
"""What a store tells: `name`, `size`, `type` ("file" or "directory"), and more of an object."""


class Objects:
    """The objects of one kind of store."""

    def __init__(self, library: Any) -> None:
        self.library = library  # the fsspec file system

    def info(self, key: str) -> Info:
        """Return what the store tells of an object or a folder."""
        return self.library.info(key)

    def tells_md5(self, key: str) -> bool:
        """Return whether what looks like the MD5 of an object is that."""
        return True

    def read(self, key: str) -> bytes:
        """Return the contents."""
        return self.library.cat_file(key)

    def read_small(self, key: str, most: int) -> tuple[Info, bytes | None]:
        """Return what is told of an object and, if it has at most so many bytes, the contents."""
        info = self.info(key)
        if info["type"] != "file":
            raise FileNotFoundError(key)
        return info, self.read(key) if info["size"] <= most else None

    def write(self, key: str, data: bytes) -> None:
        """Write an object, which takes the place of one with its name."""
        self.library.pipe_file(key, data)

    def create(self, key: str, data: bytes) -> None:
        """Write an object; raise FileExistsError if there is one with its name."""
        self.library.pipe_file(key, data, mode="create")

    def put(self, key: str, file: Path) -> None:
        """Write a file of this machine as an object."""
        self.library.put_file(os.fspath(file), key)

    def get(self, key: str, file: Path) -> None:
        """Write the contents of an object into a file of this machine."""
        self.library.get_file(key, os.fspath(file))

    def remove(self, key: str, *, missing_ok: bool = False) -> None:
        """Remove an object; raise FileNotFoundError if there is none and there has to be one."""
        try:
            self.library.rm_file(key)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def folder(self, key: str) -> list[Info]:
        """Return what is in a folder."""
        return self.library.ls(key, detail=True)

    def find(self, key: str) -> dict[str, Info]:
        """Return all objects in a folder and the folders in it."""
        return self.library.find(key, detail=True)

    def names(self, folder: str, begin: str = "") -> list[str]:
        """Return the names of what is in a folder that begin in a way."""
        if begin:  # which lists less than all
            keys = self.library.find(folder, prefix=begin)
        else:
            keys = [info["name"] for info in self.folder(folder)]
        inside = [key.removeprefix(f"{folder}/") for key in keys if key.startswith(f"{folder}/")]
        return sorted({name.partition("/")[0] for name in inside} - {""})


def version(info: Info) -> str:
    """Return what is another with each version of an object."""
    if generation := info.get("generation"):
        return str(generation)
    names = ("md5Hash", "ETag", "etag", "VersionId", "size")
    return " ".join(str(info[name]) for name in names if info.get(name))


def changed(info: Info) -> float:
    """Return when an object was written, as unix time; 0 if the store does not say."""
    for name in ("mtime", "updated", "LastModified"):
        when = info.get(name)
        if isinstance(when, str):
            when = datetime.fromisoformat(when)
        if isinstance(when, datetime):
            return when.timestamp()
    return 0.0


def open_library(scheme: str, name: str) -> Any:
    """Return the fsspec file system of one kind of addresses, of the package `name`.

    It asks the store anew each time: other processes write there too.

    Raises:
        AddressError: the package is not installed.
    """
    import fsspec
    from fsspec.config import conf

    # Orbax and etils open these as well, through `fsspec.filesystem`.
    conf.setdefault(scheme, {}).setdefault("use_listings_cache", False)
    # gcsfs sends files in one piece up to 5 MB.
    warnings.filterwarnings("ignore", "Sending a large body directly with raw bytes")
    try:
        importlib.import_module(name)
    except ImportError:
        raise AddressError(
            f"{scheme}:// needs {name}: pip install 'mfm-jax[{scheme}]', or mount the bucket"
        ) from None
    try:
        return fsspec.filesystem(scheme)
    except Exception as error:
        raise AddressError(f"{scheme}:// cannot be used ({first_line(error)}): log in") from None
