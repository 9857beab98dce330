"""Paths that users name, and those of files that come with the package."""

import os
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mfm_jax.errors import UserError
from mfm_jax.storage.addresses import LIBRARIES, StorePath, is_address, is_mistyped_address

TINY_BUNDLE = Path(__file__).parents[1] / "bundle" / "tiny"
"""The shipped miniature: every network at small size, trained on the Foley world."""

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")
"""The beginning of an address such as gs://bucket, of which `pathlib` keeps one slash."""


class PathError(UserError):
    """A path that names nothing here; the message says what to do."""


def user_path(name: str | os.PathLike[str]) -> Path:
    """Return the path that a user names: of this machine, or in an object store (a `StorePath`).

    `gs://` and `s3://` are stores, and `file://` is this machine. `12:30:05.mp4` is a file.

    Raises:
        PathError: it is another address, or empty.
    """
    text = os.fspath(name)
    if isinstance(name, StorePath):
        return name
    if isinstance(name, Path) and is_mistyped_address(text):
        return StorePath(text)  # `Path` keeps one slash of an address
    if is_address(text):
        return StorePath(text)
    if (kind := text.rstrip("/").removesuffix(":")) in LIBRARIES and "://" in text:
        raise PathError(f"{text} names no bucket: give {kind}://BUCKET/...")
    if text.startswith("file://"):
        place = urlsplit(text)
        if place.netloc not in ("", "localhost"):
            raise PathError(f"{text} is on another machine: mount its folder, and give the path")
        return local_path(unquote(place.path))
    return local_path(name)


def beside(folder: Path, name: str) -> Path:
    """Return the path that a list names: relative to its folder, absolute, or an address."""
    if is_address(name):
        return StorePath(name)
    return Path(name) if os.path.isabs(name) else folder / name


def local_path(name: str | os.PathLike[str]) -> Path:
    """Return the path of this machine that a user names.

    A path is never an address: `12:30:05.mp4` is a file.

    Raises:
        PathError: it is an address, or empty.
    """
    text = os.fspath(name)
    if not text or "\0" in text:
        raise PathError(f"{text!r} is no path: name a file or a folder")
    if is_mistyped_address(text) and not isinstance(name, Path):
        raise PathError(f"{text} lacks a slash of an address: give {StorePath(text)}")
    if re.match("hf:/(?=[^/])", text) and not (isinstance(name, Path) or os.path.lexists("hf:")):
        raise PathError(f"{text} lacks a slash of an address: give hf:/{text[3:]}")
    begins = ADDRESS.match(text)
    if begins and (text[begins.end() :].startswith("/") or lost_a_slash(name, begins[0])):
        raise PathError(
            f"{text} is an address, and files are read and written only here: mount its folder or "
            "copy the files, and give the path"
        )
    return Path(text)


def array_path(folder: str | os.PathLike[str]) -> Path:
    """Return the path of a folder of arrays that a user names: a bundle, a run, or features.

    Raises:
        PathError: as `user_path`, or its name is not UTF-8, which the libraries that read and
            write arrays (TensorStore, ArrayRecord) need.
    """
    path = user_path(folder)
    try:
        os.fspath(path.absolute()).encode()
    except UnicodeEncodeError:
        raise PathError(
            f"the name of {path.absolute()} is not UTF-8: choose another folder"
        ) from None
    return path


def lost_a_slash(name: str | os.PathLike[str], begins: str) -> bool:
    """Tell if a `Path` was made of an address, and not of a folder with a colon in its name."""
    return isinstance(name, Path) and not os.path.lexists(begins)
