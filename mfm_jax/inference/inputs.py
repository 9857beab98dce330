"""Find what is to get sound: files, folders, globs and manifests."""

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mfm_jax.data.clips import is_hidden, videos_in
from mfm_jax.errors import UsageError
from mfm_jax.inference.manifest import is_manifest, read_manifest
from mfm_jax.inference.requests import Request


def expand(patterns: Sequence[str], default: Request | None = None) -> list[Request]:
    """Return what files, folders, globs and manifests ask for, in order; no video named twice.

    Args:
        default: what a request says that a manifest does not say otherwise.

    Raises:
        DataError: a folder without any video, or a manifest that cannot be read.
        UsageError: a glob that matches nothing, or no name at all.
    """
    default = default or Request(Path())
    found: dict[Request, None] = {}
    for pattern in patterns:
        if is_manifest(Path(pattern)):
            requests = read_manifest(Path(pattern), default)
        else:
            requests = [replace(default, source=path) for path in _matches(pattern)]
        found.update(dict.fromkeys(requests))
    if not found:
        raise UsageError("no videos are given: name files, folders, globs or a manifest")
    return list(found)


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern)
    try:
        if path.is_dir():
            return videos_in(path)
        if path.exists() or not glob.has_magic(pattern):
            return [path]
    except OSError:
        return [path]  # it cannot be looked at, which is told of it alone
    found = map(Path, glob.glob(pattern, recursive=True))
    if matches := sorted(path for path in found if not is_hidden(path)):
        return matches
    raise UsageError(f"no file matches {pattern}")
