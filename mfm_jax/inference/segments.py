"""The files of a job that several workers divide among them, below `generated/` in its folder.

    000001.json            what is asked for; in the end, what became of it
    000001/00000.part      a piece that is under way: a line for each output or failure so far
    000001/00000.jsonl     a piece that is done: a line for each of its clips
    leases/                who is at work, and who has which piece

An object store cannot append to a file, so each piece has its own, which its worker writes anew. A
job that takes the place of another has the next number.
"""

import json
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mfm_jax.storage.files import names_in, write_text
from mfm_jax.storage.json_lines import read_json_lines

FOLDER, LEASES = "generated", "leases"
DONE, GIVEN_UP = "done", "given up"
"""How a job is over: all is made and recorded, or another one has taken its place."""
THREADS = 16
"""Files that are read or removed at a time: a store answers each after a while."""


@dataclass(frozen=True)
class JobFiles:
    """The places of the files of a job."""

    folder: Path  # of the outputs
    number: int

    @property
    def name(self) -> str:
        """The number as files have it."""
        return f"{self.number:06d}"

    @property
    def file(self) -> Path:
        """The description, which is made once, and written anew when the job is over."""
        return self.folder / FOLDER / f"{self.name}.json"

    @property
    def place(self) -> Path:
        """The folder of the pieces."""
        return self.folder / FOLDER / self.name

    def part(self, piece: int) -> Path:
        """Return the file of a piece that is under way."""
        return self.place / f"{piece:05d}.part"

    def done(self, piece: int) -> Path:
        """Return the file of a piece that is done."""
        return self.place / f"{piece:05d}.jsonl"

    def description(self) -> dict[str, Any]:
        """Return what is asked for, and what became of it; a job whose files are gone is over."""
        with suppress(FileNotFoundError, ValueError):
            return json.loads(self.file.read_bytes())
        return {"over": DONE}

    def is_over(self) -> bool:
        """Return whether nobody is to work at it any more."""
        return "over" in self.description()

    def end(self, how: Mapping[str, Any]) -> None:
        """Add to the description how the job is over."""
        write_text(self.file, json.dumps({**self.description(), **how}, indent=1) + "\n")

    def pieces(self) -> dict[int, Path]:
        """Return the file of every piece that has one; of two the one of a piece that is done."""
        names = [name for name in names_in(self.place) if re.fullmatch(r"\d+\.(part|jsonl)", name)]
        # "jsonl" comes before "part", and later ones count.
        return {int(name[:5]): self.place / name for name in sorted(names, reverse=True)}

    def lines(self) -> list[dict[str, Any]]:
        """Read the lines of all pieces, in order."""
        files = self.pieces()
        with ThreadPoolExecutor(THREADS) as pool:
            found = pool.map(_lines_of, [files[piece] for piece in sorted(files)])
            return [line for lines in found for line in lines]


def jobs_in(folder: Path) -> list[JobFiles]:
    """Return the jobs of a folder of outputs, the first one first."""
    names = sorted(n for n in names_in(folder / FOLDER) if re.fullmatch(r"\d{6}\.json", n))
    return [JobFiles(folder, int(name[:6])) for name in names]


def unfinished(folder: Path) -> list[JobFiles]:
    """Return the jobs whose outputs are not yet in the record of their folder."""
    return [job for job in jobs_in(folder) if job.description().get("over") != DONE]


def remove_files(files: Iterable[Path]) -> None:
    """Remove files as far as that can be done; several at a time."""

    def remove(file: Path) -> None:
        with suppress(OSError):
            file.unlink(missing_ok=True)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(remove, files))


def _lines_of(file: Path) -> list[dict[str, Any]]:
    return list(read_json_lines(file))
