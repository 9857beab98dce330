"""Find what is to get sound: files, folders, globs and manifests."""

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mfm_jax.data.clips import is_hidden, videos_in
from mfm_jax.errors import UsageError
from mfm_jax.inference.manifest import is_manifest, read_manifest
from mfm_jax.inference.requests import Request
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.paths import user_path
from mfm_jax.storage.retries import AddressError


def expand(
    patterns: Sequence[str | os.PathLike[str]], default: Request | None = None
) -> list[Request]:
    """Return what files, folders, globs and manifests ask for, in order; no video named twice.

    Each of them is a path of this machine or an address in a store (`user_path`).

    Args:
        default: what a request says that a manifest does not say otherwise.

    Raises:
        DataError: a folder without any video, or a manifest that cannot be read.
        PathError: an address that names nothing.
        UsageError: a glob that matches nothing, or no name at all.
    """
    default = default or Request(Path())
    found: dict[Request, None] = {}
    for path in map(user_path, patterns):
        if is_manifest(path):
            requests = read_manifest(path, default)
        else:
            requests = [replace(default, source=source) for source in _matches(path)]
        found.update(dict.fromkeys(requests))
    if not found:
        raise UsageError("no videos are given: name files, folders, globs or a manifest")
    return list(found)


def _matches(path: Path) -> list[Path]:
    try:
        if path.is_dir():
            return videos_in(path)
        if not glob.has_magic(str(path)) or path.exists():
            return [path]
    except AddressError:
        raise
    except OSError:
        return [path]  # it cannot be looked at, which is told of it alone
    if matches := sorted(found for found in _globbed(path) if not is_hidden(found)):
        return matches
    raise UsageError(f"no file matches {path}")


def _globbed(pattern: Path) -> Iterable[Path]:
    """Yield the paths that a glob matches, in a store below its last folder without a wildcard."""
    if not isinstance(pattern, StorePath):
        return map(Path, glob.glob(str(pattern), recursive=True))
    folder = next(path for path in pattern.parents if not glob.has_magic(str(path)))
    return folder.glob(pattern.relative_to(folder).as_posix())
