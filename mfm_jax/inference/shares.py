"""A job of many videos that several workers divide, on any machines that see the folder of outputs.

Each worker runs the same command. The requests are cut into pieces of consecutive ones. A worker
takes the lease of a piece, makes its outputs and lists them in the piece's file, and takes the next
one. A worker that dies keeps its leases for a minute; then others take its pieces over, from the
last line on that it has written. Whoever sees that all pieces are done writes the record of the
folder and ends the job.
"""

import functools
import hashlib
import json
import os
import platform
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mfm_jax.errors import UsageError
from mfm_jax.inference import record
from mfm_jax.inference.segments import (
    DONE,
    FOLDER,
    GIVEN_UP,
    LEASES,
    JobFiles,
    jobs_in,
    remove_files,
)
from mfm_jax.inference.work import Job, Maker, Work
from mfm_jax.runtime import signals
from mfm_jax.storage import leases as lease_module
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.files import atomic_write, names_in
from mfm_jax.storage.json_lines import read_json_lines
from mfm_jax.storage.leases import Lease, Leases, create
from mfm_jax.storage.parts import remove_parts

PIECE = 64
"""Requests in a piece; fewer where there would be less than so many pieces to divide."""
INTERVAL = 5.0
"""Seconds between two writes of a piece's file. A worker that dies loses what it did since."""
LOOK = 10.0
"""Seconds between two looks at what the others have, while there are pieces that nobody had."""
LONGEST_WAIT = 2.0
"""Seconds between two looks at the work of others, in the end."""
SECONDS = "MFM_LEASE_SECONDS"
"""The environment variable that says how long a lease is good without being renewed."""
GOODBYE = 3.0
"""Seconds in which a worker that is stopped may give back its leases."""


def do_together(
    work: Work,
    folder: Path,
    load: Callable[[], Maker],
    batch: int,
    *,
    overwrite: bool = False,
    number: int | None = None,
) -> list[str]:
    """Do the jobs of a run together with other workers; return the failures of all.

    It ends when all is done, whoever does it.

    Args:
        folder: of the outputs.
        load: loads the networks; called once there is a window for them.
        batch: windows computed at once.
        overwrite: make everything anew, also what is recorded.
        number: of a job in the folder that another process has begun, and that asks for this.

    Raises:
        UsageError: workers that were asked for something else are at work there, or the folder is
            not the one in which the job was begun.
    """
    load = functools.cache(load)
    with _joined(work, folder, number, overwrite=overwrite) as share:
        work = replace(work, record=share)
        while share.wait():
            work.do(_checked(work, share), load, batch)
        ended = share.files.description()
    failures = [line["reason"] for line in record.read_failures(folder)]
    work.say(
        f"{len(work.jobs)} clips, {ended.get('failed', 0)} of them failed, as "
        f"{folder / record.NAME} says; this worker has done {share.count}"
    )
    return failures


def _checked(work: Work, share: "Share") -> Iterator[Job]:
    """Yield the jobs of free pieces whose outputs can be written."""
    for jobs in share.pieces():
        work.check_targets(jobs)
        yield from (job for job in jobs if not job.failed)


@contextmanager
def _joined(work: Work, folder: Path, number: int | None, *, overwrite: bool) -> Iterator["Share"]:
    """Take part in the job of a folder while the block runs."""
    seconds = float(os.environ.get(SECONDS) or lease_module.SECONDS)
    asked = asked_for(work, folder, overwrite=overwrite)
    if number is not None and JobFiles(folder, number).description().get("asked") != asked:
        raise UsageError(
            f"{platform.node()} does not see the job in {folder}: name a folder that all machines "
            "share, or one in a store"
        )
    with Leases(folder / FOLDER / LEASES, seconds, keeps=True) as leases:
        here = leases.take(f"{WORKER}{leases.worker}")
        files = JobFiles(folder, number) if number else begin(folder, asked, leases)
        share = Share(work, files, leases, _piece(work), overwrite=overwrite)
        with signals.undone(lambda: _leave(share)), share:
            yield share
        for outputs in {job.target.parent for job in work.jobs}:
            remove_parts(outputs)  # a worker that died here was maybe writing one
        if here is not None:
            leases.give_back(here)
            remove_files([here.file])


WORKER = "worker-"
"""How the names of leases begin that tell who takes part."""


def workers(folder: Path) -> list[str]:
    """Return who is at work in a folder of outputs now."""
    place = folder / FOLDER / LEASES
    names = {name.rpartition(".")[0] for name in names_in(place)}
    present = Leases(place).holders({name for name in names if name.startswith(WORKER)})
    return sorted(present.values())


def _piece(work: Work) -> int:
    """Return how many requests a piece has."""
    return max(1, min(PIECE, len(work.jobs) // PIECE))


def asked_for(work: Work, folder: Path, *, overwrite: bool) -> dict[str, Any]:
    """Return what tells one job from another."""
    digest = hashlib.sha256()
    for job in work.jobs:
        asked = job.request
        line = [
            str(asked.source), asked.start, asked.end, asked.prompt, asked.negative_prompt,
            asked.seed, record.name_of(folder, job.target),
        ]  # fmt: skip
        digest.update(json.dumps(line).encode() + b"\n")
    told = {
        "clips": len(work.jobs),
        "requests": digest.hexdigest(),
        "settings": dict(work.settings),
        "overwrite": overwrite,
        "piece": _piece(work),
    }
    return json.loads(json.dumps(told))


def begin(folder: Path, asked: Mapping[str, Any], leases: Leases) -> JobFiles:
    """Return the job in a folder that asks for this: one that is not over, or a new one.

    One that asks for something else, and that nobody works at, is given up; what it has recorded
    counts.

    Raises:
        UsageError: others work at one that asks for something else.
    """
    while True:
        jobs = jobs_in(folder)
        current = [job for job in jobs[-1:] if not job.is_over()]
        for job in current:
            theirs = job.description().get("asked", {})
            if theirs == asked:
                return job
            if others := [name for name in workers(folder) if name != leases.worker]:
                raise UsageError(
                    f"{', '.join(others)} are making other outputs in {folder} "
                    f"({_difference(theirs, asked)}): wait until they are done, or choose "
                    "another folder"
                )
        new = JobFiles(folder, jobs[-1].number + 1 if jobs else 1)
        told = {"asked": asked, "began": time.time(), "by": leases.worker}
        try:
            create(new.file, json.dumps(told, indent=1).encode() + b"\n")
        except FileExistsError:
            continue  # another worker has just begun one
        for job in current:
            job.end({"over": GIVEN_UP})
        return new


def _difference(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    for before, now in ((theirs.get("settings", {}), ours["settings"]), (theirs, ours)):
        for name, value in now.items():
            if before.get(name) != value and not isinstance(value, dict) and name != "requests":
                return f"{name} {before.get(name)} and not {value}"
    return "other videos, prompts or seeds"


def _leave(share: "Share") -> None:
    """Give back what a worker has that is stopped, if that does not take long."""

    def leave() -> None:
        share.flush()
        share.leases.__exit__(None, None, None)

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    thread.join(GOODBYE)


@dataclass(eq=False)
class Piece:
    """Consecutive requests that this worker has the lease of."""

    number: int
    lease: Lease
    jobs: Sequence[Job]
    before: Mapping[str, dict[str, Any]]  # what an earlier holder has made, by the output's name
    lines: dict[str, dict[str, Any]] = field(default_factory=dict)  # by the output's name
    written: int = 0  # lines in its file
    at: float = 0.0  # when that was written, by the monotonic clock


class Share:
    """The part of a job that one worker does, and the record of its outputs (`work.Recorder`).

    A thread writes the files of the pieces, so that no output waits for that.
    """

    is_shared = True

    def __init__(
        self, work: Work, files: JobFiles, leases: Leases, size: int, *, overwrite: bool
    ) -> None:
        self.folder, self.files, self.leases, self.count = files.folder, files, leases, 0
        self._work, self._size = work, size
        self._names = [record.name_of(self.folder, job.target) for job in work.jobs]
        self._number = {name: i // size for i, name in enumerate(self._names)}
        self._before = {} if overwrite else record.read_record(self.folder)
        self._held: dict[int, Piece] = {}
        self._next: Piece | None = None
        self._free: list[int] = []  # pieces that nobody had when this worker looked
        self._looked = -LOOK  # by the monotonic clock
        self._mine: set[int] = set()  # pieces that this worker has done
        self._others = 0  # requests that others have done
        self._lock, self._writing = threading.Lock(), threading.Lock()
        self._wake, self._ended = threading.Event(), threading.Event()
        self._error: BaseException | None = None

    def __enter__(self) -> "Share":
        self._writer = threading.Thread(target=self._write_on, name="record", daemon=True)
        self._writer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._ended.set()
        self._wake.set()
        self._writer.join()
        if kind is not None:
            with suppress(Exception):  # the error that ends the run is told
                self.flush()

    # What becomes of the outputs.

    def has(self, target: Path, made_of: Mapping[str, Any]) -> bool:
        """Return whether an output is there as it was made, of the same inputs and settings."""
        return self._is_there(target, lambda entry: record.is_there(entry, target, made_of))

    def has_unread(self, target: Path, source: Path, asked: Mapping[str, Any]) -> bool:
        """Return the same of a video in a store, as far as that can be told without reading it."""
        return self._is_there(
            target, lambda entry: record.is_there_unread(entry, target, source, asked)
        )

    def _is_there(self, target: Path, is_there: Callable[[dict[str, Any]], bool]) -> bool:
        name = record.name_of(self.folder, target)
        with self._lock:
            piece = self._held.get(self._number[name])
        entries = (piece.before.get(name) if piece else None, self._before.get(name))
        for entry in entries:
            if entry is not None and is_there(entry):
                self._settle(name, entry)
                return True
        return False

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record an output that is whole."""
        self._settle(entry["output"], dict(entry))

    def fail(self, target: Path, source: Path, reason: str) -> None:
        """List an output that could not be made."""
        name = record.name_of(self.folder, target)
        self._settle(name, {"output": name, "source": str(source), "failed": reason})

    def close(self) -> None:
        """Do nothing: the list of failures is written when all is done."""

    def _settle(self, name: str, line: dict[str, Any]) -> None:
        with self._lock:
            piece = self._held.get(self._number[name])
            if piece is None:
                return
            self.count += name not in piece.lines
            piece.lines[name] = line
            full = len(piece.lines) == len(piece.jobs)
        if full:
            self._wake.set()

    # The files of the pieces.

    def flush(self) -> None:
        """Write everything that is known, and give back what is done.

        Raises:
            OSError: it cannot be written.
        """
        with self._writing:
            for piece in list(self._held.values()):
                self._write(piece, at_once=True)

    def _write_on(self) -> None:
        while not self._ended.is_set():
            self._wake.wait(INTERVAL)
            self._wake.clear()
            try:
                with self._writing:
                    for piece in list(self._held.values()):
                        self._write(piece)
            except Exception as error:  # told by the thread that takes the next piece
                self._error = error
                return

    def _write(self, piece: Piece, *, at_once: bool = False) -> None:
        with self._lock:
            lines = list(piece.lines.values())
        if len(lines) == len(piece.jobs):
            if self.leases.holds(piece.lease):
                _write_lines(self.files.done(piece.number), lines)
                self._mine.add(piece.number)
                if piece.written or not piece.lease.is_first:
                    self.files.part(piece.number).unlink(missing_ok=True)
            self.leases.forget(piece.lease)  # nobody asks for that of a piece that is done
            with self._lock:
                del self._held[piece.number]
        elif len(lines) > piece.written and (at_once or time.monotonic() > piece.at + INTERVAL):
            if time.time() < piece.lease.until or self.leases.holds(piece.lease):
                _write_lines(self.files.part(piece.number), lines)
            piece.written, piece.at = len(lines), time.monotonic()

    def _check(self) -> None:
        """Raise the error because of which nothing is written any more, if there is one."""
        if self._error is not None:
            raise self._error

    # The pieces.

    def pieces(self) -> Iterator[Sequence[Job]]:
        """Yield the jobs of each piece that no worker has, until there are none.

        Raises:
            Exception: the files of the pieces cannot be written.
        """
        while (piece := self._next or self._take()) is not None:
            self._next = None
            yield piece.jobs

    def wait(self) -> bool:
        """Wait until a piece is free, which `pieces` yields first; return False when all is done.

        Raises:
            Exception: the files of the pieces cannot be written.
        """
        self.flush()
        pause, told = min(INTERVAL / 4, LONGEST_WAIT / 8), False
        while not self.files.is_over():
            if left := self._look():
                self._next = self._take(left)
                if self._next is not None:
                    return True
            elif self._end():
                break
            if left and not told and pause == LONGEST_WAIT:
                told = True
                self._work.say(
                    f"waiting for {len(left)} pieces of other workers; should one of them have "
                    "died, its pieces are taken over within a minute"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, LONGEST_WAIT)
        if self.files.description().get("over") == GIVEN_UP:
            raise UsageError(f"another job was begun in {self.folder}: start this one again")
        return False

    def _look(self) -> list[int]:
        """Return the pieces that are not done, and count those that others have done."""
        self._check()
        done = {n for n, file in self.files.pieces().items() if file.suffix == ".jsonl"}
        had = {name.rpartition(".")[0] for name in names_in(self.leases.folder)}
        self._free, self._looked = [], time.monotonic()
        if self.files.is_over():  # the files of its pieces may be gone
            return []
        others = sum(len(self._jobs(number)) for number in done - self._mine)
        self._work.throughput.skip(others - self._others)
        if self._work.progress is not None:
            self._work.progress.advance(others - self._others)
        self._others = others
        left = [n for n in range(-(-len(self._names) // self._size)) if n not in done]
        self._free = [number for number in left if self._lease_name(number) not in had]
        return left

    def _take(self, left: Sequence[int] | None = None) -> Piece | None:
        """Take a piece: one that nobody has had, or else one whose worker has died.

        Args:
            left: the pieces that are not done, if this worker has just looked.
        """
        if left is None:
            self._check()
            if time.monotonic() < self._looked + LOOK and (piece := self._claim_new()) is not None:
                return piece
            left = self._look()
        others = sorted({*left} - {*self._held, *self._free})
        if (piece := self._claim_new()) is not None:
            return piece
        claimed = (self._claim(number) for number in others)
        return next((piece for piece in claimed if piece is not None), None)

    def _claim_new(self) -> Piece | None:
        """Take a piece that nobody had at the last look, unless somebody has it now."""
        while self._free:
            if (piece := self._claim(self._free.pop(0), is_new=True)) is not None:
                return piece
            random.shuffle(self._free)  # workers that began together keep out of each other's way
        return None

    def _claim(self, number: int, *, is_new: bool = False) -> Piece | None:
        lease = self.leases.take(self._lease_name(number), is_new=is_new)
        if lease is None:
            return None
        if self.files.is_over():  # since this worker looked, and its leases are gone
            self.leases.forget(lease)
            remove_files([lease.file])
            self._free = []
            return None
        if not lease.is_first and self.files.done(number).exists():
            self.leases.give_back(lease)
            return None
        lines = () if lease.is_first else read_json_lines(self.files.part(number))
        before = {line["output"]: line for line in lines if "made_of" in line}
        piece = Piece(number, lease, self._jobs(number), before)
        with self._lock:
            self._held[number] = piece
        return piece

    def _jobs(self, number: int) -> Sequence[Job]:
        return self._work.jobs[number * self._size : (number + 1) * self._size]

    def _lease_name(self, number: int) -> str:
        return f"{self.files.name}-{number:05d}"

    def _end(self) -> bool:
        """Write the record of the folder and end the job, unless another worker does it."""
        lease = self.leases.take(f"{self.files.name}-end")
        if lease is None:
            return False
        over = self.files.is_over()
        if not over:
            lines = self.files.lines()
            failed = [line for line in lines if "failed" in line]
            record.write_record(self.folder, record.read_record(self.folder).values())
            record.write_failures(self.folder, failed)
            how = {"over": DONE, "made": len(lines) - len(failed), "failed": len(failed)}
            self.files.end(how)
        self.leases.give_back(lease)
        if not over:
            self._tidy()
        return True

    def _tidy(self) -> None:
        """Remove the files of this job and of earlier ones that nobody needs any more."""
        jobs = [job for job in jobs_in(self.folder) if job.number <= self.files.number]
        for job in jobs:
            remove_files(job.place / name for name in names_in(job.place))
            with suppress(OSError):
                job.place.rmdir()
        remove_files(job.file for job in jobs if job.number < self.files.number)
        mine, names = self.files.name, names_in(self.leases.folder)
        present = {WORKER + worker for worker in workers(self.folder)}
        gone = [n for n in names if n.startswith(WORKER) and n.rpartition(".")[0] not in present]
        pieces = [n for n in names if n[0].isdigit() and n[: len(mine)] <= mine]
        remove_files(self.leases.folder / name for name in (*gone, *pieces))


def _write_lines(file: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    if isinstance(file, StorePath):
        file.write_text(text)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as part:
        part.write_text(text)
