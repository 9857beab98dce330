"""The record of a folder of outputs: what was made of what, and what could not be made.

`generated.jsonl` gets a line for each output once the file is there, so that a run that is started
again goes on where it stopped. `failed.csv` lists what failed in the last run. Several workers have
files of their own until all is done (`mfm_jax.inference.shares`).
"""

import csv
import io
import json
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mfm_jax
from mfm_jax.errors import WriteError, system_reason
from mfm_jax.inference.segments import unfinished
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.copies import md5_of
from mfm_jax.storage.files import atomic_write, write_text
from mfm_jax.storage.json_lines import read_json_lines
from mfm_jax.storage.store import digest_file

NAME, FAILED = "generated.jsonl", "failed.csv"
COLUMNS = ("file", "output", "reason")
"""The first line of `failed.csv`."""


class Record:
    """Knows what one run makes in a folder of this machine. Several threads may use it."""

    is_shared = False

    def __init__(self, folder: Path, *, skip: bool = True) -> None:
        """Read the record of a folder, which need not exist.

        Args:
            skip: whether what is recorded counts as made.
        """
        self.folder = folder
        self._lock = threading.Lock()
        self._failures = 0
        self._entries = {} if not skip else read_record(folder)

    def has(self, target: Path, made_of: Mapping[str, Any]) -> bool:
        """Return whether an output is there as it was made, of the same inputs and settings."""
        return is_there(self._entries.get(name_of(self.folder, target)), target, made_of)

    def has_unread(self, target: Path, source: Path, asked: Mapping[str, Any]) -> bool:
        """Return the same of a video in a store, as far as that can be told without reading it."""
        entry = self._entries.get(name_of(self.folder, target))
        return is_there_unread(entry, target, source, asked)

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record an output that is whole, as `entry_of` tells it.

        Raises:
            WriteError: the record cannot be written.
        """
        with self._lock:
            _append(self.folder / NAME, json.dumps(entry) + "\n")

    def fail(self, target: Path, source: Path, reason: str) -> None:
        """List an output that could not be made; the first one of a run begins a new list."""
        rows = [(_text(source), _text(name_of(self.folder, target)), reason)]
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
            file.write(as_csv(rows if self._failures else [COLUMNS, *rows]))
            self._failures += 1

    def close(self) -> None:
        """Remove the list of an earlier run, if nothing failed in this one."""
        if not self._failures:
            (self.folder / FAILED).unlink(missing_ok=True)


def name_of(folder: Path, target: Path) -> str:
    """Return the name of an output in the record of its folder."""
    return target.relative_to(folder).as_posix()


def entry_of(
    name: str,
    source: Path,
    made_of: Mapping[str, Any],
    seconds: float,
    candidate: int = 0,
    *,
    digest: str,
    md5: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the line of an output that is whole.

    Args:
        name: of the output in its folder, from `name_of`.
        made_of: the digest of the input, and every setting.
        seconds: the length of the sound.
        candidate: which of several was chosen, from 0; its seed is so much later.
        digest: SHA-256 of the output.
        md5: of the `source` and of the `output`, as far as they are in a store.
    """
    return {
        "output": name,
        "sha256": digest,
        "source": str(source),
        "seconds": round(seconds, 6),
        "candidate": candidate,
        "made_of": dict(made_of),
        "version": mfm_jax.__version__,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **({"md5": dict(md5)} if md5 else {}),
    }


def is_there(entry: Mapping[str, Any] | None, target: Path, made_of: Mapping[str, Any]) -> bool:
    """Return whether an output is there as an entry says, made of these inputs and settings."""
    if entry is None or entry.get("made_of") != made_of:
        return False
    try:
        recorded = entry.get("md5", {}).get("output")
        if recorded and _stored_md5(target) == recorded:
            return True
        return digest_file(target) == entry.get("sha256")
    except OSError:
        return False


def is_there_unread(
    entry: Mapping[str, Any] | None, target: Path, source: Path, asked: Mapping[str, Any]
) -> bool:
    """Return the same of a source in a store, which tells its MD5; False where that is unknown."""
    if entry is None or not isinstance(source, StorePath):
        return False
    made_of = entry.get("made_of", {})
    if {**asked, "sha256": made_of.get("sha256")} != made_of:
        return False
    try:
        known = _stored_md5(source)
    except OSError:
        return False
    same = known is not None and known == entry.get("md5", {}).get("source")
    return same and is_there(entry, target, made_of)


def _stored_md5(path: Path) -> str | None:
    """Return the MD5 that a store tells of an object; None for a file of this machine."""
    return md5_of(path.info()) if isinstance(path, StorePath) else None


def write_record(folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write the record anew.

    Raises:
        WriteError: it cannot be written.
    """
    write_text(folder / NAME, "".join(json.dumps(entry) + "\n" for entry in entries))


def write_failures(folder: Path, failed: Sequence[Mapping[str, str]]) -> None:
    """Write the list of failures anew: their `source`, `output` and the reason, `failed`.

    Raises:
        WriteError: it cannot be written.
    """
    file = folder / FAILED
    if not failed:
        file.unlink(missing_ok=True)
        return
    rows = [(_text(line["source"]), _text(line["output"]), line["failed"]) for line in failed]
    with atomic_write(file) as part:
        part.write_bytes(as_csv([COLUMNS, *rows]).encode("utf-8", "surrogateescape"))


def read_failures(folder: Path) -> list[dict[str, str]]:
    """Read the list of failures; a row has the names of `COLUMNS`."""
    try:
        text = (folder / FAILED).read_bytes().decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return []
    return list(csv.DictReader(io.StringIO(text, newline="")))


def as_csv(rows: Iterable[Iterable[str]]) -> str:
    """Return rows as the text of a CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _text(path: Path | str) -> str:
    return os.fsencode(path).decode("utf-8", "surrogateescape")


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the last entry of every output. A line that was not written whole is no entry.

    Raises:
        WriteError: it cannot be read.
    """
    file = folder / NAME
    try:
        entries = list(read_json_lines(file))
        for job in unfinished(folder):
            entries += [line for line in job.lines() if "failed" not in line]
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
