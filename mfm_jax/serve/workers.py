"""The threads of a server: they decode videos, compute batches, and write what was made.

Whatever goes wrong with a job ends that job, and the others go on.
"""

import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import numpy as np

from mfm_jax.errors import MediaError, UserError, full_disk, one_line
from mfm_jax.inference.pipeline import Made, stitch
from mfm_jax.media.audio import write_sound
from mfm_jax.media.frames import windows
from mfm_jax.media.sandbox import end_children
from mfm_jax.media.write import write_video
from mfm_jax.serve.jobs import SOUND, VIDEO, Job, Jobs
from mfm_jax.serve.limits import Limits, span
from mfm_jax.serve.metrics import Metrics
from mfm_jax.serve.programs import KeptPrograms
from mfm_jax.serve.queue import Item, Queue
from mfm_jax.serve.schemas import State
from mfm_jax.serve.sounds import Sounds

DECODERS = 2
"""Threads that decode videos, each in a process of its own (`mfm_jax.media.sandbox`)."""

MEDIA = 2
"""Threads that look at uploads and write results, each with such a process as well."""

NAMES = ("decode", "device", "fetch", "media", "compile")
"""Beginnings of the names of a server's threads."""

ENDING = 2.0
"""Seconds for which the end of the threads is waited for."""


class Workers:
    """Makes the sounds of the jobs in a queue, until it is stopped."""

    def __init__(
        self,
        jobs: Jobs,
        queue: Queue,
        kept: KeptPrograms,
        sounds: Sounds,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.jobs, self.queue, self.kept, self.sounds = jobs, queue, kept, sounds
        self.limits, self.metrics = limits, metrics
        self.media = ThreadPoolExecutor(MEDIA, thread_name_prefix="media")
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="fetch")
        decoders = [
            threading.Thread(target=self._decode_all, name=f"decode_{i}", daemon=True)
            for i in range(DECODERS)
        ]
        self._device = threading.Thread(target=self._compute_all, name="device", daemon=True)
        self._threads = [*decoders, self._device]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> bool:
        """Stop the threads; return False if one is still busy after a while, as in a compiler."""
        self.queue.stop()
        self.kept.close()
        for pool in (self._fetcher, self.media):
            pool.shutdown(wait=False, cancel_futures=True)
        end_children()
        until = time.monotonic() + ENDING
        threads = [each for each in threading.enumerate() if each.name.startswith(NAMES)]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    @property
    def alive(self) -> bool:
        """True while jobs are computed."""
        return self._device.is_alive()

    def cancel(self, job: Job) -> None:
        """Stop the work on a job, and forget it."""
        self._count_end(job, State.cancelled)
        self.queue.drop(job)
        self.jobs.forget(job)

    def fail(self, job: Job, reason: str) -> None:
        """End a job that cannot be done."""
        self._count_end(job, State.failed)
        self.queue.drop(job)
        self.jobs.end(job, State.failed, reason)

    def _count_end(self, job: Job, state: State) -> None:
        if not job.state.is_final:
            self.metrics.count("jobs", state=state.value)

    @contextmanager
    def _failure_of(self, job: Job) -> Iterator[None]:
        """Turn every exception in the block into the failure of a job."""
        try:
            yield
        except Exception as error:
            self.fail(job, reason(error, job))

    def _decode_all(self) -> None:
        while (job := self.queue.next_job()) is not None:
            with self._failure_of(job):
                self._decode(job)

    def _decode(self, job: Job) -> None:
        """Decode the windows of a job, and let what computes them be compiled."""
        if not self.jobs.begin(job):
            return
        compiled = self.kept.ask(job.key, job.windows)
        compiled.add_done_callback(partial(self._compiled, job))
        job.texts = (
            self._encoded(job, job.settings.prompt),
            self._encoded(job, job.settings.negative_prompt),
        )
        until = time.monotonic() + self.limits.decoding
        found = windows(job.source, self.sounds.model.spec, end=job.info.seconds)
        try:
            for window in found:
                begun = time.monotonic()
                if not self.queue.offer(job, window):
                    return
                until += time.monotonic() - begun  # what was waited for room does not count
                if time.monotonic() > until:
                    raise MediaError(
                        f"{job.source} takes more than {span(self.limits.decoding)} to decode: "
                        "make it smaller"
                    )
        finally:
            found.close()  # type: ignore[attr-defined]
        self.queue.decoded(job)

    def _encoded(self, job: Job, text: str | None) -> Any:
        if text is None or self.sounds.encode is None:
            return None
        encoded = self.sounds.encode(text)
        job.notes += encoded.notes
        return encoded.text

    def _compiled(self, job: Job, compiled: Future[None]) -> None:
        if compiled.cancelled():
            return
        if (error := compiled.exception()) is not None:
            self.fail(job, reason(error, job))
        self.queue.wake()

    def _compute_all(self) -> None:
        """Start batches; another thread waits for them."""
        while group := self.queue.next_batch():
            started = _tried(partial(self.sounds.start, group))
            self._fetcher.submit(self._fetch, group, started)

    def _fetch(self, group: list[Item], started: Made | Exception) -> None:
        """Wait for a batch. Where it fails, the windows of each job in it are tried alone."""
        made = _fetched(started)
        self.queue.returned()
        alone = list(dict.fromkeys(job for job, _ in group))
        if isinstance(made, Exception) and len(alone) > 1:
            for one in alone:
                items = [item for item in group if item[0] is one]
                self._deliver(items, _fetched(_tried(partial(self.sounds.start, items))))
        else:
            self._deliver(group, made)
        self.metrics.count("batches")
        self.metrics.count("windows", len(group))
        self.metrics.count("visitors_in_batches", len({job.visitor for job in alone}))
        self.jobs.changed()

    def _deliver(self, group: Sequence[Item], made: Made | Exception) -> None:
        """Give each job its sounds, and let those be written that have all; or fail the job."""
        if isinstance(made, Exception):
            self.fail(group[0][0], reason(made, group[0][0]))
            return
        for (job, _), waves, loa in zip(group, made.waves, made.loa, strict=False):
            if not job.state.is_final:
                job.made.append(Made(waves, loa))
                job.computed += 1
                if job.computed == job.windows:
                    self.media.submit(self._write, job)

    def _write(self, job: Job) -> None:
        """Write the sound of a job that has all its windows, alone and with the picture."""
        with self._failure_of(job):
            made = list(job.made)
            if not made:
                return  # it was cancelled
            choice = self.sounds.choose(made)
            waves = [np.asarray(each.waves[choice.number]) for each in made]
            wave = stitch(waves, self.sounds.model.spec, job.samples)
            write_sound(job.folder / SOUND, wave)
            notes = write_video(job.source, job.folder / VIDEO, wave)
            job.notes += (
                [f"kept: {choice.words.strip(' ()')}"] * bool(choice.words) + choice.notes + notes
            )
            job.size += sum((job.folder / name).stat().st_size for name in (SOUND, VIDEO))
            if self.jobs.end(job, State.done):
                self.metrics.count("jobs", state=State.done.value)
                self.metrics.took(time.time() - job.added)


def _tried(start: Callable[[], Made]) -> Made | Exception:
    try:
        return start()
    except Exception as error:
        return error


def _fetched(started: Made | Exception) -> Made | Exception:
    return started if isinstance(started, Exception) else _tried(lambda: jax.device_get(started))


def reason(error: BaseException, job: Job) -> str:
    """Return for the visitor why a job failed: without paths, and without the program's faults.

    These are printed with their traceback, for whoever runs the server.
    """
    if isinstance(error, UserError):
        return visible(str(error), job)
    if full_disk(error):
        return "the server's disk is full: try later"
    if not job.state.is_final:
        print(f"mfm serve: a fault of the program, in job {job.id[:6]}", file=sys.stderr)
        traceback.print_exception(error)
    return "a fault of the server, which is recorded there: try another video or other settings"


def visible(text: str, job: Job) -> str:
    """Return an error without paths and variables of the server."""
    text = text.replace(str(job.source), job.name).replace(f"{job.folder}/", "")
    return one_line(re.sub(r", or set MFM_\w+", "", text))
