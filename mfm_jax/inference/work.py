"""The work on many videos: decoded ahead, computed in full batches, written in threads.

One that cannot be done never stops the others, and none is lost.
"""

import os
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from mfm_jax.errors import MediaError, UsageError
from mfm_jax.inference.candidates import Choice
from mfm_jax.inference.finishing import Finishing
from mfm_jax.inference.pipeline import Made, stitch
from mfm_jax.inference.record import NAME, entry_of, name_of
from mfm_jax.inference.requests import Request, is_sound
from mfm_jax.inference.stream import THREADS, Device, batches, in_full, read_ahead
from mfm_jax.media.audio import RATE, write_sound
from mfm_jax.media.containers import check_is_file
from mfm_jax.media.formats import format_of
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.media.write import check_video_target, write_excerpt, write_video
from mfm_jax.runtime.failures import FailureLog
from mfm_jax.runtime.progress import Progress
from mfm_jax.runtime.throughput import Throughput
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.copies import local_copy, naming
from mfm_jax.storage.files import check_target, signature
from mfm_jax.storage.parts import report_full_disk
from mfm_jax.storage.scratch import scratch_file
from mfm_jax.storage.store import digests_of_file

WRITERS = 2
"""Threads that write files while the device computes."""
PATIENT = 8
"""Threads that read, and that write, where a store is asked: they wait most of the time."""


@dataclass(eq=False)
class Job:
    """A request, the file it becomes, the windows made so far, and why it failed if it did."""

    request: Request
    target: Path
    file: Path = Path()  # the video on this machine, while it is read and its output written
    held: ExitStack = field(default_factory=ExitStack)  # keeps `file` there
    samples: int = 0
    windows: int = 0
    made: list[Made] = field(default_factory=list)  # of each window
    signature: tuple[int, ...] | None = None  # of the file, when its reading began
    made_of: dict[str, Any] = field(default_factory=dict)  # what the record says of it
    md5: list[str] = field(default_factory=list)  # of the video, if it is in a store
    choice: str = ""  # which of several candidates it is, in words
    written: bool = False  # now, or by an earlier run
    skipped: bool = False  # written by an earlier run
    failed: str | None = None

    @property
    def source(self) -> Path:
        """The video."""
        return self.request.source

    @property
    def step(self) -> float:
        """Seconds of the sound for each of its windows."""
        return self.samples / RATE / self.windows if self.windows else 0.0


Item = tuple[Job, Window]


def the_only_one(made: Sequence[Made]) -> Choice:
    """Return the choice among sounds of one candidate."""
    return Choice()


Result = tuple[list[Item], Made | Exception]
"""Windows and what was made of them, or why nothing was: then they are of one video."""


@runtime_checkable
class Maker(Protocol):
    """Makes the sounds of windows, and chooses among candidates."""

    def results(
        self, groups: Iterable[list[Item]], batch: int, throughput: Throughput
    ) -> Iterator[Result]:
        """Yield what is made of windows, in any groups of up to `batch`; each is computed full."""
        ...

    @property
    def choose(self) -> Callable[[Sequence[Made]], Choice]:
        """The function that returns which candidate is best over all windows of a video."""
        ...


@dataclass(frozen=True)
class Networks:
    """A `Maker` with all networks on the device."""

    start: Callable[[Sequence[Item]], Made]  # starts to make the sounds of a batch
    # Returns which candidate is best over all windows of a video.
    choose: Callable[[Sequence[Made]], Choice] = the_only_one

    def results(
        self, groups: Iterable[list[Item]], batch: int, throughput: Throughput
    ) -> Iterator[Result]:
        """Yield what is made of each group."""
        device = Device[Item, Made](
            lambda group: self.start(in_full(group, batch)), jax.device_get, throughput
        )
        return device.results_by_source(groups, lambda item: item[0])


@runtime_checkable
class Recorder(Protocol):
    """Knows what is made in a folder of outputs. Several threads use it."""

    folder: Path
    is_shared: bool  # by several workers: it is told of every job what became of it

    def has(self, target: Path, made_of: Mapping[str, Any]) -> bool:
        """Return whether an output is there as it was made, of the same inputs and settings."""
        ...

    def has_unread(self, target: Path, source: Path, asked: Mapping[str, Any]) -> bool:
        """Return the same of a video in a store, as far as that can be told without reading it."""
        ...

    def add(self, entry: Mapping[str, Any]) -> None:
        """Record an output that is whole, as `record.entry_of` tells it."""
        ...

    def fail(self, target: Path, source: Path, reason: str) -> None:
        """List an output that could not be made."""
        ...

    def close(self) -> None:
        """End the list of failures."""
        ...


@dataclass(frozen=True)
class Work:
    """Makes and writes the sound of every job. A job that cannot be done is marked and told.

    A video in a store is copied to this machine when its turn comes; the copy goes once the output
    is written. So there are at most as many copies as videos are read ahead, computed and written.
    """

    jobs: Sequence[Job]
    spec: WindowSpec
    progress: Progress | None = None
    record: Recorder | None = None  # of the folder of outputs
    settings: Mapping[str, Any] = field(default_factory=dict)  # of all jobs, for the record
    finishing: Finishing = field(default_factory=Finishing)
    throughput: Throughput = field(default_factory=Throughput)
    joint: bool = False  # windows agree where they overlap

    def check_targets(self, jobs: Iterable[Job] | None = None) -> None:
        """Check that every file can be written, before anything is computed for it."""
        for job in self.jobs if jobs is None else jobs:
            with self._failure_of(job):
                job.target.parent.mkdir(parents=True, exist_ok=True)
                _check_target(job.source, job.target)

    def run(self, load: Callable[[], Maker], batch: int) -> None:
        """Do all jobs, `batch` windows at a time, whichever videos they are of.

        Args:
            load: loads the networks; called once there is a window for them.
        """
        self.do([job for job in self.jobs if not job.failed], load, batch)
        if self.record is not None:
            self.record.close()
            if skipped := sum(job.skipped for job in self.jobs):
                self.say(
                    f"{skipped} of {len(self.jobs)} clips are there already, as "
                    f"{self.record.folder / NAME} says"
                )

    def do(self, jobs: Iterable[Job], load: Callable[[], Maker], batch: int) -> None:
        """Do some of the jobs; which ones need not be known before their turn."""
        begun: list[Job] = []
        try:
            sources = _kept_in(begun, jobs)
            threads = PATIENT if self._asks_a_store else THREADS
            reading = read_ahead(sources, self._read, ahead=2 * batch, threads=threads)
            with closing(reading) as items:
                groups = batches(items, batch, key=lambda item: item[0].request.reads_text)
                first = next(groups, None)
                if first is not None:
                    self._make(load(), chain([first], groups), batch)
            for job in begun:
                if not (job.failed or job.written):
                    self._fail(job, _changed(job))
        finally:
            for job in begun:
                job.held.close()

    @property
    def _asks_a_store(self) -> bool:
        paths = (path for job in self.jobs for path in (job.source, job.target))
        return any(isinstance(path, StorePath) for path in paths)

    def _make(self, networks: Maker, groups: Iterable[list[Item]], batch: int) -> None:
        """Compute windows, and write each video that has all of its own."""
        writing: deque[tuple[Job, Future]] = deque()
        most = PATIENT if self._asks_a_store else WRITERS
        with ThreadPoolExecutor(most, thread_name_prefix="write") as writers:
            for group, result in networks.results(groups, batch, self.throughput):
                for job, made in self._results(group, result):
                    job.made.append(made)
                    if not job.failed and len(job.made) == job.windows:
                        writing.append((job, writers.submit(self._write, job, networks)))
                while len(writing) > most or (writing and writing[0][1].done()):
                    self._written(*writing.popleft())
            for job, future in writing:
                self._written(job, future)

    def _read(self, job: Job) -> Iterator[Window]:
        """Yield every window of a video, unless its sound is there already; runs in a thread."""
        with self._failure_of(job):
            request, asked = job.request, _asked(job.request) | dict(self.settings)
            if self.record and self.record.has_unread(job.target, job.source, asked):
                self._skip(job)
                return
            job.file = job.held.enter_context(local_copy(job.source))
            job.signature = signature(job.file)
            if self.record is not None:
                digest, *job.md5 = _digests(job.source, job.file)
                job.made_of = {"sha256": digest, **asked}
                if self.record.has(job.target, job.made_of):
                    self._skip(job)
                    return
            seconds = request.seconds(probe(job.file).seconds)
            job.samples = round(seconds * RATE)
            job.windows = len(self.spec.starts(seconds))
            self.throughput.open(seconds)
            for window in windows(job.file, self.spec, request.start, end=request.end):
                yield window
                if job.failed:
                    return

    def _skip(self, job: Job) -> None:
        """Leave an output as it is there."""
        job.written = job.skipped = True
        job.held.close()
        self.throughput.skip()
        self._advance()

    def _results(self, group: list[Item], result: Made | Exception) -> Iterator[tuple[Job, Made]]:
        """Yield what was made of each window, or mark their video as failed."""
        if isinstance(result, Exception):
            self._fail(group[0][0], result)
            return
        self.throughput.did(sum(job.step for job, _ in group))
        for (job, _), waves, loa in zip(group, result.waves, result.loa, strict=False):
            yield job, Made(waves, loa)

    def _write(self, job: Job, networks: Maker) -> list[str]:
        """Write the file of a job that has all its windows; return what one might not expect."""
        choice = networks.choose(job.made)
        waves = [np.asarray(made.waves[choice.number]) for made in job.made]
        wave = stitch(waves, self.spec, job.samples, joint=self.joint)
        job.made.clear()
        start, rate = job.request.start, self.finishing.rate
        wave, notes = self.finishing(wave, job.file, start)
        job.choice, notes = choice.words, choice.notes + notes
        if signature(job.file) != job.signature:
            raise _changed(job)
        with _file_of(job.target) as file:
            if is_sound(file):
                write_sound(file, wave, rate)
            elif job.request.is_excerpt:
                write_excerpt(job.file, file, wave, start, start + job.samples / RATE, rate)
            else:
                notes += write_video(job.file, file, wave, rate)
            digests = [] if self.record is None else _digests(job.target, file)
        if self.record is not None:
            digest, *md5 = digests
            stored = {k: each[0] for k, each in (("source", job.md5), ("output", md5)) if each}
            name, seconds = name_of(self.record.folder, job.target), job.samples / RATE
            made_of, number = job.made_of, choice.number
            self.record.add(
                entry_of(name, job.source, made_of, seconds, number, digest=digest, md5=stored)
            )
        return notes

    def _written(self, job: Job, writing: Future[list[str]]) -> None:
        """Tell that a file is written, or why it is not."""
        notes: list[str] = []
        with self._failure_of(job):
            notes = writing.result()
            job.written = True
            job.held.close()
            self.say(f"{job.source} -> {job.target}{job.choice}")
            self._advance()
        for note in notes:
            self.note(f"{job.target}: {note}")

    @contextmanager
    def _failure_of(self, job: Job) -> Iterator[None]:
        """Turn every exception in the block into the failure of a job."""
        try:
            yield
        except Exception as error:
            self._fail(job, error)

    def _fail(self, job: Job, error: Exception) -> None:
        """Mark a job as failed, and tell it at once."""
        if job.failed:
            return  # another window of it has failed before
        reason = FailureLog(job.target.parent).reason(str(job.source), error)
        job.failed = reason.replace(str(job.file), str(job.source)) if job.file.name else reason
        job.held.close()
        self.throughput.drop((job.windows - len(job.made)) * job.step)
        self._advance()
        job.made.clear()
        if len(self.jobs) > 1:  # the error that ends the command tells of a single one
            self.say(f"failed: {job.failed}")
        if self.record is not None and (len(self.jobs) > 1 or self.record.is_shared):
            self.record.fail(job.target, job.source, job.failed)

    def _advance(self) -> None:
        if self.progress is not None:
            self.progress.advance()

    def note(self, line: str) -> None:
        """Tell what is other than one might expect, as a warning where no progress is shown."""
        if self.progress is None:
            warnings.warn(line, stacklevel=2)
        else:
            self.progress.say(line)

    def say(self, line: str) -> None:
        """Print a line where progress is shown."""
        if self.progress is not None:
            self.progress.say(line)


def _changed(job: Job) -> MediaError:
    return MediaError(f"{job.source} was changed while it was read: try again")


def _kept_in(begun: list[Job], jobs: Iterable[Job]) -> Iterator[Job]:
    for job in jobs:
        begun.append(job)
        yield job


def _check_target(source: Path, target: Path) -> None:
    """Check that an output can be written; a video in a store is looked at when its turn comes.

    Raises:
        UserError: it cannot.
    """
    if _real(target) == _real(source):
        raise UsageError(f"output {target} is the input itself: choose another output")
    if is_sound(target):
        check_target(target)
    elif not any(isinstance(path, StorePath) for path in (source, target)):
        check_video_target(source, target)
    else:
        format_of(target)
        check_target(target)
        if not isinstance(source, StorePath):
            check_is_file(source)


def _real(path: Path) -> str:
    return str(path) if isinstance(path, StorePath) else os.path.realpath(path)


@contextmanager
def _file_of(target: Path) -> Iterator[Path]:
    """Yield a file of this machine to write, which becomes `target` where that is in a store."""
    if not isinstance(target, StorePath):
        yield target
        return
    with scratch_file(target.name) as file, naming(target, file):
        with report_full_disk(file):
            yield file
        target.put(file)


def _digests(path: Path, file: Path) -> list[str]:
    """Return the SHA-256 of a file, and the MD5 if it is a copy of what is in a store."""
    return digests_of_file(file, "sha256", *(["md5"] if isinstance(path, StorePath) else []))


def _asked(request: Request) -> dict[str, Any]:
    """Return what an output depends on, apart from the video and settings of the whole run."""
    return {
        "start": request.start,
        "end": request.end,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": request.seed,
    }
