"""Reading format 2: fields of configs and weights that format 3 calls by other names.

Each table reads from the old name to the new one. Components of format 2 stay as they are on the
disk, also in bundles of format 3 that take them over.
"""

import re
from collections.abc import Mapping
from typing import Any

_VIT = {"d": "width", "d_ff": "mlp_width"}
_QFORMER = {**_VIT, "d_context": "context_width"}

FIELDS: Mapping[str, Mapping[str, Any]] = {
    "timechat": {
        "d_llama": "llama_width",
        "vit": _VIT,
        "image_qformer": _QFORMER,
        "video_qformer": _QFORMER,
    },
    "unet": {"clock": "timed"},
    "t5": {"d_ff": "mlp_width"},
}
"""Renamed fields by component; a mapping holds those of the field of its name."""

_PRE_NORM = {"blocks.*.norm1": "blocks.*.attn_norm", "blocks.*.norm2": "blocks.*.mlp_norm"}
_UNET_BLOCK = {
    "norm1": "attn1_norm", "norm2": "attn2_norm", "norm3": "mlp_norm", "ff": "mlp",
    "clock": "time_proj",
}  # fmt: skip


def _under(prefix: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return a table whose names, old and new, lie under `prefix`."""
    return {f"{prefix}.{old}": f"{prefix}.{new}" for old, new in names.items()}


WEIGHTS: Mapping[str, Mapping[str, str]] = {
    "timechat": {
        **_under("image_qformer.blocks.*", {"query_ff": "query_mlp", "text_ff": "text_mlp"}),
        **_under("video_qformer.blocks.*", {"query_ff": "query_mlp"}),
    },
    "audiomae": _PRE_NORM,
    "mapper": _under("gpt2", _PRE_NORM),
    "sequence": _under("gpt2", _PRE_NORM),
    "gpt2": _PRE_NORM,
    "t5": _PRE_NORM,
    "unet": {
        "time": "step_embedding",
        "halve": "downsample",
        "double": "upsample",
        **_under("down.*.attentions.*.blocks.*", _UNET_BLOCK),
        **_under("mid.attentions.*.blocks.*", _UNET_BLOCK),
        **_under("up.*.attentions.*.blocks.*", _UNET_BLOCK),
    },
    "vae": {
        "encoder.down.*.halve": "encoder.down.*.downsample",
        "decoder.up.*.double": "decoder.up.*.upsample",
    },
}
"""Renamed weights by component: how their dotted names begin; a star is an index."""


def read_config(component: str, config: Any) -> Any:
    """Return the JSON of a config with the fields of format 3; others stay as they are."""
    return _renamed(config, FIELDS.get(component, {}))


def _renamed(data: Any, table: Mapping[str, Any]) -> Any:
    if not isinstance(data, dict):
        return data
    renamed: dict[str, Any] = {}
    for name, value in data.items():
        entry = table.get(name, name)
        if isinstance(entry, str):
            renamed[entry] = value
        else:
            renamed[name] = _renamed(value, entry)
    return renamed


def old_config(component: str, config: Any) -> Any:
    """Return the JSON of a config with the fields of format 2: the inverse of `read_config`."""
    return _renamed(config, _inverse(FIELDS.get(component, {})))


def _inverse(table: Mapping[str, Any]) -> dict[str, Any]:
    return {
        (new if isinstance(new, str) else old): (old if isinstance(new, str) else _inverse(new))
        for old, new in table.items()
    }


def read_name(component: str, name: str) -> str:
    """Return what format 3 calls the weight `name` of format 2."""
    return rename(WEIGHTS.get(component, {}), name)


def old_name(component: str, name: str) -> str:
    """Return what format 2 called the weight `name` of format 3: the inverse of `read_name`."""
    return rename({new: old for old, new in WEIGHTS.get(component, {}).items()}, name)


def rename(table: Mapping[str, str], name: str) -> str:
    """Return `name` with the beginning that `table` lists, if any, replaced."""
    for old, new in table.items():
        pattern = re.escape(old).replace(r"\*", r"(\d+)")
        if found := re.match(rf"{pattern}(?=\.)", name):
            return new.replace("*", "{}").format(*found.groups()) + name[found.end() :]
    return name
