"""What docs/mapper_in_pytorch.md says, for the test that holds it to it: its program and tables."""

import re
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from mfm_jax.mapper import MapperConfig, Streams

DOCUMENT = Path(__file__).parents[2] / "docs" / "mapper_in_pytorch.md"


def program() -> ModuleType:
    """The document's one Python program, run as a module; errors in it name the document's lines.

    Raises:
        ValueError: the document has none or several.
    """
    text = DOCUMENT.read_text()
    before, source, _ = re.split(r"^```(?:python)?\n", text, flags=re.MULTILINE)
    module = ModuleType("mapper_in_pytorch")
    source = "\n" * before.count("\n") + "\n" + source
    exec(compile(source, str(DOCUMENT), "exec"), module.__dict__)
    return module


def files() -> set[str]:
    """The files of a folder that the document names."""
    return set(re.findall(r"`([\w/]+\.\w+)`", "".join(row[0] for row in _rows("The files"))))


def tensors(config: MapperConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that the document expects in `fusion.safetensors`."""
    baseline = config.kind != "gpt2"
    facts = {config.kind} if baseline else {config.fusion, *["head"] * config.head}
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
            key = re.sub(r"\bE\b", encoder, name.strip("`"))
            factors = (axis.split(" * ") for axis in shape.strip("`[]").split(", "))
            numbers = [[{**sizes, "C": width}.get(f) or int(f) for f in axis] for axis in factors]
            found[key] = tuple(int(np.prod(axis)) for axis in numbers)
    return found


def streams(ours: Streams, module: ModuleType) -> dict:
    """Streams of ours as the document's program takes them."""
    return {
        name: module.Stream(*(None if x is None else torch.tensor(np.asarray(x)) for x in stream))
        for name, stream in ours.items()
    }


def _rows(section: str) -> list[list[str]]:
    """The cells of every row of the tables in a section, without their heads."""
    _, text = DOCUMENT.read_text().split(f"\n## {section}\n")
    lines = text.split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    rules = {i for i, row in enumerate(rows) if set("".join(row)) == {"-"}}
    return [row for i, row in enumerate(rows) if i not in rules and i + 1 not in rules]
