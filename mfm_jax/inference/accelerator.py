"""What a Ray cluster runs of a job (`mfm_jax.inference.on_ray`): readers and accelerators.

A reader is one of the workers of `mfm_jax.inference.shares`, and decodes, writes and records. Its
networks are in the process of an accelerator, to which it sends windows and which sends sounds.
"""

import pickle
import platform
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import mfm_jax
from mfm_jax.errors import UsageError, UserError, first_line
from mfm_jax.inference.candidates import Choice
from mfm_jax.inference.pipeline import Made
from mfm_jax.inference.shares import do_together
from mfm_jax.inference.work import PATIENT, Item, Job, Maker, Result, Work
from mfm_jax.media.windows import Window
from mfm_jax.runtime.programs import keep_programs
from mfm_jax.runtime.throughput import Throughput

THREADS = PATIENT + 4
"""Calls that an accelerator answers at a time: choices of all writers, windows, and sounds."""


Opener = Callable[[], tuple[Callable[[], Maker], int]]
"""Returns what loads the networks in the process that calls it, and the windows that they compute
at once. It can be pickled."""


@dataclass(frozen=True)
class Assignment:
    """The job, and the part of it that a reader has, as Ray hands them to it."""

    work: Mapping[str, Any]  # fields of `Work`
    folder: Path  # of the outputs
    number: int  # of the job in it
    overwrite: bool
    opener: Opener
    takes: Mapping[str, Any]  # what an accelerator asks Ray for
    keep: bool  # compiled programs
    version: str = mfm_jax.__version__


class _Lost(BaseException):
    """The accelerator of a reader is lost. That is no failure of a video, so no `Exception`."""


def read(told: Assignment) -> None:
    """Take part in a job; a task.

    Raises:
        UserError: it cannot be done on this machine.
        RayActorError: the accelerator is lost.
    """
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    if told.version != mfm_jax.__version__:
        raise UsageError(
            f"{platform.node()} has mfm-jax {mfm_jax.__version__}, and the command is "
            f"{told.version}: install the same everywhere"
        )
    import ray

    actor = ray.remote(Accelerator).options(
        num_cpus=0, max_concurrency=THREADS, **(told.takes or {"scheduling_strategy": _here(ray)})
    )
    networks = _RemoteNetworks(actor.remote(told.opener, told.keep))
    try:
        batch = networks.call("open")  # before a piece is taken: it may wait for a place
        do_together(
            Work(**told.work),
            told.folder,
            networks.loaded,
            batch,
            overwrite=told.overwrite,
            number=told.number,
        )
    except _Lost as lost:
        raise lost.__cause__ or lost from None
    finally:
        networks.kill()


def _here(ray: Any) -> Any:
    """Return the strategy that chooses this machine, where it can."""
    strategies = ray.util.scheduling_strategies
    node = ray.get_runtime_context().get_node_id()
    return strategies.NodeAffinitySchedulingStrategy(node, soft=True)


class Accelerator:
    """The networks of a reader, in a process of their own: an actor."""

    def __init__(self, opener: Opener, keep: bool) -> None:
        """Prepare to open the networks.

        Args:
            keep: compiled programs, in a folder of this machine.
        """
        if keep:
            keep_programs()
        self._opener = opener

    def open(self) -> int:
        """Open the bundle, and return the windows that are computed at once."""
        self._load, self._batch = self._opener()
        return self._batch

    def load(self) -> None:
        """Load the networks."""
        self._maker = self._load()

    def begin(self) -> None:
        """Begin to make the sounds of windows that `take` is given."""
        self._jobs: dict[int, Job] = {}
        self._numbers: dict[Job, int] = {}
        self._groups: Queue[list[Item] | None] = Queue(1)
        groups = iter(self._groups.get, None)
        self._results = self._maker.results(groups, self._batch, Throughput())

    def take(self, group: Sequence[tuple[int, Job, Window]] | None) -> None:
        """Take windows, as soon as those before are under way; None ends them."""
        if group is None:
            self._groups.put(None)
            return
        for number, job, _ in group:
            if number not in self._jobs:  # the windows of a video have one job here, too
                self._jobs[number], self._numbers[job] = job, number
        self._groups.put([(self._jobs[number], window) for number, _, window in group])

    def next(self) -> tuple[list[tuple[int, Window]], Made | Exception] | None:
        """Return windows with what was made of them; None after the last ones."""
        found = next(self._results, None)
        if found is None:
            return None
        group, result = found
        told = [(self._numbers[job], window.without_frames()) for job, window in group]
        return told, _portable(result) if isinstance(result, Exception) else result

    def choose(self, made: Sequence[Made]) -> Choice:
        """Return which candidate is best over all windows of a video."""
        return self._maker.choose(made)


def _portable(error: Exception) -> Exception:
    """Return an exception that can be sent to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {first_line(error)}")
    return error


@dataclass(frozen=True)
class _RemoteNetworks:
    """A `Maker` whose networks are those of an accelerator."""

    accelerator: Any

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a method and wait for what it returns.

        Raises:
            Exception: what the method has raised.
            _Lost: the process is no more.
        """
        import ray

        try:
            return result_of(ray, getattr(self.accelerator, name).remote(*arguments))
        except ray.exceptions.RayActorError as error:
            raise _Lost from error

    def loaded(self) -> "_RemoteNetworks":
        """Load the networks and return this."""
        self.call("load")
        return self

    def choose(self, made: Sequence[Made]) -> Choice:
        """Return which candidate is best over all windows of a video."""
        return self.call("choose", list(made))

    def results(
        self, groups: Iterable[list[Item]], batch: int, throughput: Throughput
    ) -> Iterator[Result]:
        """Yield what is made of windows, which a thread sends."""
        numbers: dict[Job, int] = {}
        jobs: list[Job] = []

        def send() -> None:
            try:
                for group in groups:
                    for job in dict.fromkeys(job for job, _ in group):
                        if job not in numbers:
                            numbers[job] = len(jobs)
                            jobs.append(job)
                    self.call(
                        "take", [(numbers[job], _plain(job), window) for job, window in group]
                    )
            finally:
                self.call("take", None)

        self.call("begin")
        with ThreadPoolExecutor(1, thread_name_prefix="send") as pool:
            sending, over = pool.submit(send), False
            try:
                while (found := self.call("next")) is not None:
                    told, result = found
                    yield [(jobs[number], window) for number, window in told], result
                over = True
            finally:
                if not over:
                    self.kill()  # or the thread might wait for it for ever
            sending.result()

    def kill(self) -> None:
        """End the process."""
        import ray

        ray.kill(self.accelerator)


def _plain(job: Job) -> Job:
    """Return what networks need to know of a job."""
    return Job(job.request, job.target, windows=job.windows)


def result_of(ray: Any, reference: Any) -> Any:
    """Wait for what a call returns.

    Raises:
        Exception: what it has raised, as if that had been here; or the process was lost.
    """
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from (None if isinstance(error.cause, UserError) else error)
