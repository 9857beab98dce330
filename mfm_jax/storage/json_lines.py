"""Read files of JSON lines that a process may have been killed in the middle of writing."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def read_json_lines(file: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects in a file, or none if there is no file.

    A line that is no object, such as one that was not written whole, is left out.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for text in lines:
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict):
            yield line
