"""What a bundle is made of, in words: for `mfm bundle show` and for the card of a repository."""

from collections.abc import Iterator

from mfm_jax.bundle.bundle import Bundle
from mfm_jax.bundle.components import Source
from mfm_jax.bundle.licences import combined


def origin(bundle: Bundle, source: Source) -> Iterator[str]:
    """Yield what a component was made from, in lines."""
    yield f"made by {source.made_by} (mfm-jax {source.version})"
    yield f"licence {combined([source.licence])}"
    if trained := _training(bundle, source):
        yield f"trained {trained}"
    for file, sha256 in source.files:
        yield f"from {file}  sha256 {sha256}"


def _training(bundle: Bundle, source: Source) -> str:
    """Return the networks and the data that a component was trained with, in words."""
    here = {name: entry.checksum for name, entry in bundle.entries.items()}
    networks = [
        name if here.get(name) == checksum else f"{name} (not the one in this bundle)"
        for name, checksum in source.trained_with
    ]
    parts = [f"with {', '.join(networks)}"] if networks else []
    return " ".join([*parts, f"on {source.data}"] if source.data else parts)


def byte_size(count: int) -> str:
    """Return a number of bytes in words."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
