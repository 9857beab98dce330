"""The card of a bundle in a repository of the Hugging Face hub: its README.md."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mfm_jax import __version__
from mfm_jax.bundle.bundle import Bundle
from mfm_jax.bundle.components import COMPONENTS
from mfm_jax.bundle.describe import byte_size, origin
from mfm_jax.bundle.licences import UNKNOWN, combined, commercial_use, limits_of_use
from mfm_jax.errors import one_line
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.streams import networks_of
from mfm_jax.storage.hub import Address

NEEDED = ("mapper", "unet", "vae", "vocoder")
"""The components without which a bundle makes no sound from video, beside the encoders."""
HUB_LICENCES = (
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc0-1.0", "isc", "mit", "unlicense",
)  # fmt: skip
"""Licences under the names that the hub knows, which are those of SPDX in small letters."""
YES = {True: "yes", False: "no", None: "unknown"}


class Scores(NamedTuple):
    """A table of scores, and where they come from."""

    about: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


class Exports(NamedTuple):
    """The exports that other libraries can load."""

    folders: Mapping[str, str]  # of each component that has one
    refused: Mapping[str, str]  # why another component has none


def card(bundle: Bundle, address: Address, exports: Exports, scores: Sequence[Scores] = ()) -> str:
    """Return the text of the card of a repository."""
    parts = [
        _front(bundle),
        f"# {address.repository.rpartition('/')[2]}\n",
        "Sound for silent video, with [MFM-Mapper](https://arxiv.org/abs/2509.04957) in JAX: the "
        f"networks of a bundle of mfm-jax {__version__}.\n",
        _use(bundle, address),
        "## Components\n",
        _table(
            ("component", "parameters", "precision", "size", "licence", "commercial use"),
            [_component(bundle, name) for name in bundle.entries],
        ),
        _settings(bundle),
        "## Licences\n",
        _licences(bundle),
        _scores(scores),
        "## Provenance\n",
        *_provenance(bundle),
        _exports(exports),
    ]
    return "\n".join(part for part in parts if part)


def _front(bundle: Bundle) -> str:
    """Return the metadata that the hub reads, in YAML; strings of JSON are strings of YAML."""
    licence = combined(entry.source.licence for entry in bundle.entries.values())
    lines = {"license": licence.lower()}
    if licence == UNKNOWN:
        lines = {"license": "unknown"}
    elif licence.lower() not in HUB_LICENCES:
        lines = {"license": "other", "license_name": licence.lower().replace(" ", "-")}
        lines["license_link"] = "README.md"
    lines |= {"library_name": "mfm-jax"}
    told = [f"{name}: {json.dumps(value)}" for name, value in lines.items()]
    tags = ["- jax", "- flax", "- video-to-audio", "- audio-generation", "- mfm-mapper"]
    return "\n".join(["---", *told, "tags:", *tags, "---\n"])


def _use(bundle: Bundle, address: Address) -> str:
    mapper = bundle.config("mapper") if "mapper" in bundle.entries else MapperConfig.base()
    adapted = "adapter" in bundle.entries
    read = [*mapper.streams, *(bundle.config("adapter").streams if adapted else ())]
    encoders = [name for name in networks_of(read) if name in COMPONENTS]  # some have no weights
    if missing := [name for name in (*encoders, *NEEDED) if name not in bundle.entries]:
        name = next(iter(bundle.entries))
        how = f"bundle = Bundle.open('{address}')\nnetwork = bundle.load({name!r})"
        return (
            f"It makes no sound by itself: it has no {', '.join(missing)}.\n\n```python\n"
            f"# pip install 'mfm-jax[hub]'\nfrom mfm_jax.bundle import Bundle\n\n{how}\n```\n"
        )
    return (
        "```sh\npip install 'mfm-jax[hub]'\n"
        f"mfm generate clip.mp4 -o out/ --bundle {address}\n```\n\n"
        "```python\nimport mfm_jax\n\n"
        f'mfm_jax.generate("clip.mp4", "sound.mp4", bundle="{address}")\n```\n'
    )


def _component(bundle: Bundle, name: str) -> list[str]:
    entry, store = bundle.entries[name], bundle.store(name)
    kinds = Counter(listed.dtype for listed in store.arrays.values())
    licence = combined([entry.source.licence])
    return [
        f"`{name}`",
        f"{entry.parameters:,}",
        " and ".join(kinds),
        byte_size(store.size),
        licence,
        YES[commercial_use(licence)],
    ]


def _settings(bundle: Bundle) -> str:
    s = bundle.settings
    return (
        f"Windows of {s.seconds} s; {s.sampler} with {s.steps} steps, guidance {s.guidance}, "
        f"{s.schedule.prediction} prediction.\n"
    )


def _licences(bundle: Bundle) -> str:
    licence = combined(entry.source.licence for entry in bundle.entries.values())
    allowed, because = limits_of_use(bundle.entries)
    reason = f", because of {', '.join(f'`{name}`' for name in because)}" if because else ""
    return (
        f"All weights together are under {_cell(licence)}: weights that were trained with others "
        "and on data are bound by all of their licences.\n"
        f"Commercial use of the bundle: {YES[allowed]}{reason}.\n"
    )


def _scores(scores: Sequence[Scores]) -> str:
    tables = [f"{_cell(s.about)}\n\n{_table(s.columns, s.rows)}" for s in scores]
    return "\n".join(["## Scores\n", *tables]) if tables else ""


def _provenance(bundle: Bundle) -> Iterator[str]:
    for name, entry in bundle.entries.items():
        lines = [f"  - {_cell(line)}" for line in origin(bundle, entry.source)]
        yield "\n".join([f"- `{name}`, checksum `{entry.checksum}`", *lines])
    yield f"\nThe whole bundle has the SHA-256 `{bundle.identity}`.\n"


def _exports(exports: Exports) -> str:
    rows = [[f"`{name}`", f"`{folder}`"] for name, folder in exports.folders.items()]
    refused = [f"- `{name}` is not there: {_cell(why)}" for name, why in exports.refused.items()]
    if not rows:
        return "\n".join(["## For other libraries\n", *refused, ""]) if refused else ""
    return "\n".join(
        [
            "## For other libraries\n",
            "The same weights in the layout of transformers, diffusers or the original "
            "repositories, as safetensors:\n",
            _table(("component", "folder"), rows),
            *refused,
            "",
        ]
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: Any) -> str:
    """Return text that Markdown shows as it is, in one line; what is code already stays."""
    told = one_line(str(text))
    if not told.startswith("`"):
        told = told.replace("*", "\\*").replace("_", "\\_").replace("<", "&lt;")
    return told.replace("|", "\\|")
