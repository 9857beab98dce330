"""Find the sounds of each side and pair them by name."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mfm_jax.data.clips import VIDEO_SUFFIXES, is_hidden
from mfm_jax.errors import UsageError
from mfm_jax.inference.manifest import is_manifest, read_manifest
from mfm_jax.inference.requests import Request
from mfm_jax.media import sounds
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.copies import local_copy
from mfm_jax.storage.paths import user_path

SUFFIXES = (*VIDEO_SUFFIXES, *sounds.SUFFIXES)
NAMED = 5
"""Names that an error lists before it only counts."""


@dataclass(frozen=True)
class Sound:
    """A file, or a part of one, whose sound is evaluated."""

    path: Path
    start: float = 0.0  # s
    end: float | None = None  # s; None is the end of the file

    @property
    def seconds(self) -> float | None:
        """The length of the part, None for the whole file."""
        return None if self.end is None else self.end - self.start

    @contextmanager
    def here(self) -> Iterator["Sound"]:
        """Yield it with a file of this machine, for one in a store a copy that goes afterwards."""
        with local_copy(self.path) as file:
            yield replace(self, path=file)


@dataclass(frozen=True)
class Pairing:
    """The same clips on every side, by name: of the reference and of one system or more."""

    names: tuple[str, ...]
    reference: Mapping[str, Sound]
    systems: Mapping[str, Mapping[str, Sound]]
    sources: Mapping[str, str]  # where each system, and `reference`, comes from

    @property
    def digest(self) -> str:
        """SHA-256 of the names of the clips, one a line: equal lists have equal digests."""
        text = "\n".join(self.names).encode("utf-8", "surrogateescape")
        return hashlib.sha256(text).hexdigest()


def list_sounds(source: Path) -> dict[str, Sound]:
    """List the sounds of a folder with its subfolders, or of a manifest, by name.

    A name is the path of the file below the folder without its suffix. In a manifest it is that of
    the output that `mfm generate` makes of the line, so that a manifest of videos is the reference
    of what was generated from it.

    Raises:
        DataError: a manifest cannot be read.
        UsageError: there is no sound, or two have the same name.
    """
    if is_manifest(source):
        requests = read_manifest(source, Request(Path()))
        listed = [(_stem(r.file_name("x")), Sound(r.source, r.start, r.end)) for r in requests]
    elif source.is_dir():
        if isinstance(source, StorePath):
            paths: Iterator[Path] = iter(source.files())
        else:
            paths = (Path(top, name) for top, _, names in os.walk(source) for name in names)
        kept = sorted(p for p in paths if p.suffix.lower() in SUFFIXES and not is_hidden(p))
        listed = [(_stem(p.relative_to(source).as_posix()), Sound(p)) for p in kept]
    else:
        wrong = "is a file" if source.exists() else "does not exist"
        raise UsageError(f"{source} {wrong}: give a folder, or a manifest (.csv, .jsonl)")
    found: dict[str, Sound] = {}
    for name, sound in listed:
        if name in found:
            both = f"{found[name].path} and {sound.path}"
            raise UsageError(f"{both} are both called {name!r}: rename one, or give a manifest")
        found[name] = sound
    if not found:
        raise UsageError(f"{source} has no sound ({', '.join(SUFFIXES)}): give another folder")
    return found


def system_names(sources: Sequence[str]) -> dict[str, Path]:
    """Return the sources of the systems by name: `NAME=PATH`, or the name of a folder or file.

    Raises:
        PathError: an address that names nothing.
        UsageError: two have the same name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        given, _, rest = source.partition("=")
        named = bool(rest) and not os.path.lexists(source)
        path = user_path(rest if named else source)
        whole = path if isinstance(path, StorePath) else Path(os.path.abspath(path))
        name = given if named else (whole.stem or "generated")
        if name in found or name == "reference":
            raise UsageError(f"two sides are called {name!r}: name this one as NAME={path}")
        found[name] = path
    return found


def pair(
    reference: Mapping[str, Sound],
    systems: Mapping[str, Mapping[str, Sound]],
    sources: Mapping[str, str],
) -> Pairing:
    """Pair the sounds of every system with those of the reference by name.

    Raises:
        UsageError: a system lacks clips or has others; they are counted and named.
    """
    for system, its in systems.items():
        missing, extra = sorted(reference.keys() - its), sorted(its.keys() - reference)
        if missing or extra:
            parts = [f"lacks {_named(missing, len(reference))}"] if missing else []
            parts += [f"has {_named(extra)} that the reference lacks"] if extra else []
            raise UsageError(
                f"{sources[system]} {' and '.join(parts)}: give both sides the same names, or a "
                "manifest of the clips to compare"
            )
    names = tuple(sorted(reference))
    return Pairing(names, dict(reference), {k: dict(v) for k, v in systems.items()}, dict(sources))


def _named(names: Sequence[str], total: int | None = None) -> str:
    listed = ", ".join(names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    count = f"{len(names)} of {total} clips" if total is not None else f"{len(names)} clips"
    if total is None and len(names) == 1:
        count = "1 clip"
    return f"{count} ({listed}{more})"


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]
