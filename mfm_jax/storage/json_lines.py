"""Files of JSON lines that grow, and that a process may be killed in the middle of writing."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.files import write_text

INTERVAL = 10.0
"""Seconds between two writes of a file in a store, which is written as a whole."""


class JsonLines:
    """A file to which one process adds lines.

    On a disk a line is there at once. In a store the whole file is written anew with the first line
    after `INTERVAL` seconds, and by `flush`.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._text: str | None = None  # of a file in a store, once it was read
        self._written, self._waits = 0.0, False

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line."""
        text = json.dumps(line) + "\n"
        if not isinstance(self.file, StorePath):
            with self.file.open("a") as file:
                file.write(text)
            return
        if self._text is None:
            self._text = self.file.read_text() if self.file.exists() else ""
        self._text, self._waits = self._text + text, True
        if time.monotonic() > self._written + INTERVAL:
            self.flush()

    def replace(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """Let the file have these lines."""
        self._text, self._waits = "".join(json.dumps(line) + "\n" for line in lines), False
        write_text(self.file, self._text)

    def flush(self) -> None:
        """Write what waits."""
        if self._waits and self._text is not None:
            write_text(self.file, self._text)
            self._written, self._waits = time.monotonic(), False


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
