"""The licence of a component, computed from what it was made of.

Licences are SPDX expressions (https://spdx.org/licenses) that join identifiers with AND: weights
that were trained with others and on data are bound by all of their licences together.
"""

import re
from collections.abc import Iterable, Mapping

from mfm_jax.bundle.bundle import Bundle, Entry
from mfm_jax.bundle.components import Source

UNKNOWN = "LicenseRef-unknown"
"""The licence of data or weights whose licence is not known."""

COMMERCIAL = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0",
    "CC-BY-SA-4.0", "CC0-1.0", "ISC", "MIT", "Unlicense",
)  # fmt: skip
"""Licences that allow commercial use; some of them on conditions."""
_NON_COMMERCIAL = (
    "CC-BY-NC-3.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-3.0",
    "CC-BY-NC-ND-4.0",
)  # fmt: skip
_FORBIDS = re.compile(r"(^|-)NC(-|$)|non-?commercial|research", re.IGNORECASE)


def _squashed(text: str) -> str:
    """Return the letters and digits of a licence's name, without "the", "licence", "version"."""
    words = re.sub(r"\b(the|licen[cs]e|version)\b", "", text.lower())
    return re.sub(r"[^a-z0-9]", "", words)


_IDENTIFIERS = {_squashed(name): name for name in (*COMMERCIAL, *_NON_COMMERCIAL)}


def combined(licences: Iterable[str]) -> str:
    """Return the conjunction of licences: each part once, in alphabetical order.

    Usual spellings become SPDX identifiers ("CC-BY-NC-SA 4.0"), other names "LicenseRef-...", and
    an empty name, "none" or "unknown" becomes `UNKNOWN`, as does a conjunction of nothing.
    """
    parts = {_identifier(part) for licence in licences for part in _split(licence)}
    return " AND ".join(sorted(parts)) or UNKNOWN


def commercial_use(licence: str) -> bool | None:
    """Return whether a licence allows commercial use; None if that is not known.

    One part that forbids it is enough for no; otherwise one part that is not known is enough for
    None.
    """
    parts = [_identifier(part) for part in _split(licence)]
    if any(_FORBIDS.search(part) for part in parts):
        return False
    return True if all(part in COMMERCIAL for part in parts) else None


def limits_of_use(entries: Mapping[str, Entry]) -> tuple[bool | None, list[str]]:
    """Return `commercial_use` of all components together, and the components that decide it."""
    allowed = commercial_use(combined(entry.source.licence for entry in entries.values()))
    if allowed:
        return True, []
    names = [n for n, e in entries.items() if commercial_use(e.source.licence) is allowed]
    return allowed, names


def trained_source(
    made_by: str,
    *,
    bundle: Bundle | None,
    components: Iterable[str],
    data_licence: str,
    data: str = "",
) -> Source:
    """Return the provenance of a component that was trained here.

    Args:
        made_by: the command that trained it.
        bundle: the bundle with the networks that it was trained with.
        components: those networks: what made its features or targets, gave its first weights, or
            computed its loss. Names that the bundle lacks are skipped.
        data_licence: of the clips or features it was trained on; `UNKNOWN` if it is not known.
        data: what it was trained on, in a word and without a path.
    """
    present = {} if bundle is None else bundle.entries
    entries = {name: present[name] for name in sorted(set(components)) if name in present}
    return Source(
        made_by,
        combined((data_licence, *(entry.source.licence for entry in entries.values()))),
        trained_with=tuple((name, entry.checksum) for name, entry in entries.items()),
        data=data,
    )


def _split(licence: str) -> list[str]:
    return [part.strip(" ()") for part in re.split(r"\s+AND\s+", licence, flags=re.IGNORECASE)]


def _identifier(name: str) -> str:
    if name.startswith("LicenseRef-"):
        return name
    squashed = _squashed(name)
    if squashed in ("", "none", "unknown", "noassertion"):
        return UNKNOWN
    if squashed in _IDENTIFIERS:
        return _IDENTIFIERS[squashed]
    return "LicenseRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
