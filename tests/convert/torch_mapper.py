"""The tables of docs/mapper_in_pytorch.md, for the test that checks them."""

import re
from types import ModuleType

import numpy as np
import torch

from benchmarks.documented import DOCUMENT
from mfm_jax.mapper import MapperConfig, Streams


def files() -> set[str]:
    """Return the files of a folder that the document lists."""
    return set(re.findall(r"`([\w/]+\.\w+)`", "".join(row[0] for row in _rows("The files"))))


def tensors(config: MapperConfig) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that the document expects in `fusion.safetensors`."""
    baseline = config.kind != "gpt2"
    facts = {config.kind} if baseline else {config.fusion, *["head"] * config.head, "stems"}
    counted = config.kind == "linear_flat"
    sizes = {
        "W": config.gpt2.width,
        "D": config.loa_width,
        "K": config.loa.tokens,
        "N": sum(width * (count if counted else 1) for _, count, width in config.encoders),
    }
    found = {}
    for name, shape, where in _rows("The tensors"):
        if facts.isdisjoint(re.findall(r"`(\w+)`", where)):
            continue
        for encoder, width in config.widths.items():
            if "`stems`" in where and encoder not in config.stems:
                continue
            key = re.sub(r"\bE\b", encoder, name.strip("`"))
            factors = (axis.split(" * ") for axis in shape.strip("`[]").split(", "))
            numbers = [[{**sizes, "C": width}.get(f) or int(f) for f in axis] for axis in factors]
            found[key] = tuple(int(np.prod(axis)) for axis in numbers)
    return found


def streams(ours: Streams, module: ModuleType) -> dict:
    """Convert our streams for the document's program."""
    return {
        name: module.Stream(*(None if x is None else torch.tensor(np.asarray(x)) for x in stream))
        for name, stream in ours.items()
    }


def _rows(section: str) -> list[list[str]]:
    """Return the cells of the tables in a section, without their headers."""
    _, text = DOCUMENT.read_text().split(f"\n## {section}\n")
    lines = text.split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    rules = {i for i, row in enumerate(rows) if set("".join(row)) == {"-"}}
    return [row for i, row in enumerate(rows) if i not in rules and i + 1 not in rules]
