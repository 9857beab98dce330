"""Versions of installed libraries."""

from importlib.metadata import PackageNotFoundError, version


def version_of(library: str) -> str:
    """Return the version of an installed library, or "unknown"."""
    try:
        return version(library)
    except PackageNotFoundError:
        return "unknown"
