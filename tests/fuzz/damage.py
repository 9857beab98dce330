"""What can happen to files and to a JSON text, for the cases of bundles and checkpoints."""

import json
import os
import random
from pathlib import Path
from typing import Any

ABSURD: list[Any] = [
    0, -1, 1, 2, 10**7, 10**30, -(2**63), 0.5, 1e308, float("nan"), float("inf"), None, True, False,
    "", "x", "7", "../x", "/etc/passwd", "x" * 5000, "\n\x1b[2J", [], {}, [[]], [0] * 100_000,
    {"a": {"b": {}}}, [True], [1.5], "float32", "bfloat17",
]  # fmt: skip
TEXTS: list[bytes] = [
    b"", b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"nul", b"{}",
    b"[]", b"7", b'"x"', b"\x00" * 100, b"1" * 10_000,
]  # fmt: skip


def damage_bytes(rng: random.Random, data: bytearray) -> str:
    """Change the contents of a file in place; return what was done."""
    kind = rng.choice(["flips", "cut", "zeros", "grown", "spliced", "doubled"])
    at = rng.randrange(len(data)) if data else 0
    length = rng.randrange(1, 3000)
    if kind == "flips":
        for _ in range(rng.choice([1, 1, 1, 5, 50]) if data else 0):
            at = rng.randrange(len(data))
            data[at] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "zeros":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "grown":
        data += rng.randbytes(length)
    elif kind == "spliced":
        begin = rng.randrange(len(data)) if data else 0
        data[at : at + length] = data[begin : begin + length]
    else:
        data[at:at] = data[at : at + length]
    return f"{kind} at {at}"


def damage_files(rng: random.Random, files: list[Path]) -> str:
    """Damage, exchange, remove or replace some of `files`; return what was done."""
    one, other = rng.choice(files), rng.choice(files)
    kind = rng.choice(["bytes"] * 6 + ["swapped", "copied", "deleted", "folder", "link", "pipe"])
    if kind == "bytes":
        data = bytearray(one.read_bytes())
        done = damage_bytes(rng, data)
        one.write_bytes(data)
        return f"{one.name}: {done}"
    if kind == "swapped":
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
    elif kind == "copied":
        other.write_bytes(one.read_bytes())
    else:
        one.unlink()
        if kind == "folder":
            one.mkdir()
        elif kind == "link":
            one.symlink_to(rng.choice([other, Path("/etc/hostname"), one, Path("nowhere")]))
        elif kind == "pipe":
            os.mkfifo(one)
    return f"{one.name}, {other.name}: {kind}"


def damage_json(rng: random.Random, file: Path) -> str:
    """Change a value in a JSON file, or all of its text; return what was done."""
    if rng.random() < 0.1:
        text = rng.choice(TEXTS)
        file.write_bytes(text)
        return f"{file.name}: the text {text[:20]!r}"
    data = json.loads(file.read_text())
    table, key = _place(rng, data)
    kind = rng.choice(["absurd", "absurd", "scaled", "deleted", "renamed", "other", "added"])
    old = table[key]
    if kind == "absurd":
        table[key] = rng.choice(ABSURD)
    elif kind == "scaled" and isinstance(old, int | float) and not isinstance(old, bool):
        table[key] = rng.choice([old + 1, old - 1, -old, old * 2, old * 1000, float(old)])
    elif kind == "renamed" and isinstance(table, dict):
        table[rng.choice(["x", key + "x", key[:-1], key.upper()])] = table.pop(key)
    elif kind == "added" and isinstance(table, dict):
        table[rng.choice(["x", "depth", "../x"])] = rng.choice(ABSURD)
    elif kind == "other":
        others, another = _place(rng, data)
        table[key] = others[another]
    else:
        del table[key]
    try:
        file.write_text(json.dumps(data))
    except ValueError:  # something holds itself now
        file.write_bytes(b"")
    return f"{file.name}: {key} {kind}"


def _place(rng: random.Random, data: Any) -> tuple[Any, Any]:
    """Return a table or list in `data` and a key of it."""
    while True:
        table, key = data, rng.choice(list(data))
        while isinstance(table[key], dict | list) and table[key] and rng.random() < 0.9:
            table = table[key]
            key = rng.choice(list(table)) if isinstance(table, dict) else rng.randrange(len(table))
        return table, key


def one_line(text: str) -> str:
    """Return a line that refuses something.

    Raises:
        AssertionError: it is more than a line, or too long to read.
    """
    assert "\n" not in text.rstrip("\n"), f"more than a line: {text!r}"
    assert 0 < len(text) < 5000, f"{len(text)} characters"
    return f"refused: {text.strip()}"
