"""Every message that docs/troubleshooting.md explains is one that the code can print."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
GAP = "…"
"""Stands for what is filled in, in the page as here."""
MESSAGES = re.findall(r"^### `(.*)`$", PAGE.read_text(), re.MULTILINE)


def spelled(node: ast.AST) -> str:
    """Return a string of the source with a gap for each value, other expressions as one gap."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(spelled(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return spelled(node.left) + spelled(node.right)
    return GAP


@cache
def strings() -> frozenset[str]:
    """All strings of the product."""
    files = [f for top in ("mfm_jax", "convert") for f in (ROOT / top).rglob("*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    return frozenset(
        spelled(node)
        for node in nodes
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)
    )


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_can_print_it(message):
    assert message in strings()


def test_no_message_is_explained_twice():
    assert len(set(MESSAGES)) == len(MESSAGES) > 30
