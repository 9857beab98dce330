"""The record of a folder of outputs: what was made of what, and what could not be made.

`generated.jsonl` gets a line for each output once the file is there, so that a run that is started
again goes on where it stopped. `failed.csv` lists what failed in the last run.
"""

import csv
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import mfm_jax
from mfm_jax.errors import WriteError, system_reason
from mfm_jax.storage.json_lines import read_json_lines
from mfm_jax.storage.store import digest_file

NAME, FAILED = "generated.jsonl", "failed.csv"


class Record:
    """Knows what was made in a folder. Several threads may use it."""

    def __init__(self, folder: Path, *, skip: bool = True) -> None:
        """Read the record of a folder, which need not exist.

        Args:
            skip: whether what is recorded counts as made.
        """
        self.folder = folder
        self._lock = threading.Lock()
        self._failures = 0
        self._entries = {} if not skip else read_record(folder / NAME)

    def has(self, target: Path, made_of: Mapping[str, Any]) -> bool:
        """Return whether an output is there as it was made, of the same inputs and settings."""
        entry = self._entries.get(self._name(target))
        if entry is None or entry.get("made_of") != made_of:
            return False
        try:
            return digest_file(target) == entry.get("sha256")
        except OSError:
            return False

    def add(
        self,
        target: Path,
        source: Path,
        made_of: Mapping[str, Any],
        seconds: float,
        candidate: int = 0,
    ) -> None:
        """Record an output that is whole.

        Args:
            made_of: the digest of the input, and every setting.
            seconds: the length of the sound.
            candidate: which of several was chosen, from 0; its seed is so much later.

        Raises:
            WriteError: the record cannot be written.
        """
        entry = {
            "output": self._name(target),
            "sha256": digest_file(target),
            "source": str(source),
            "seconds": round(seconds, 6),
            "candidate": candidate,
            "made_of": dict(made_of),
            "version": mfm_jax.__version__,
            "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        with self._lock:
            _append(self.folder / NAME, json.dumps(entry) + "\n")

    def fail(self, target: Path, source: Path, reason: str) -> None:
        """List an output that could not be made; the first one of a run begins a new list."""
        row = [_text(source), _text(self._name(target)), reason]
        with (
            self._lock,
            suppress(OSError),  # the reason is told in any case
            (self.folder / FAILED).open(
                "a" if self._failures else "w",
                newline="",
                encoding="utf-8",
                errors="surrogateescape",
            ) as file,
        ):
            rows = csv.writer(file, lineterminator="\n")
            if not self._failures:
                rows.writerow(("file", "output", "reason"))
            rows.writerow(row)
            self._failures += 1

    def close(self) -> None:
        """Remove the list of an earlier run, if nothing failed in this one."""
        if not self._failures:
            (self.folder / FAILED).unlink(missing_ok=True)

    def _name(self, target: Path) -> str:
        return target.relative_to(self.folder).as_posix()


def _text(path: Path | str) -> str:
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def read_record(file: Path) -> dict[str, dict[str, Any]]:
    """Read the last entry of every output. A line that was not written whole is no entry.

    Raises:
        WriteError: it cannot be read.
    """
    try:
        entries = list(read_json_lines(file))
    except OSError as error:
        raise WriteError(
            f"{file} cannot be read ({system_reason(error)}): choose another folder"
        ) from None
    return {entry["output"]: entry for entry in entries if isinstance(entry.get("output"), str)}


def _append(file: Path, line: str) -> None:
    """Add a line in one write, after what may be the rest of one that was not written whole."""
    try:
        with file.open("ab+") as out:
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    line = "\n" + line
            out.write(line.encode())
    except OSError as error:
        raise WriteError(
            f"cannot write {file} ({system_reason(error)}): make room and start again"
        ) from None
