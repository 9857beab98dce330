"""The jobs of all visitors: their states, how many there may be, and when they are forgotten.

An id is 128 random bits and the only way to a job. There is no list of them.
"""

import secrets
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mfm_jax.inference.pipeline import Made, Text
from mfm_jax.media.audio import RATE
from mfm_jax.media.video_info import VideoInfo
from mfm_jax.media.windows import Window
from mfm_jax.serve.limits import Limits, Refused
from mfm_jax.serve.offer import Key
from mfm_jax.serve.schemas import SoundSettings, State

SOUND, VIDEO, SOURCE = "sound.wav", "sound.mp4", "source"
"""Files in the folder of a job."""


@dataclass(eq=False)
class Job:
    """The sound that is wanted for a video, and how far it is."""

    id: str
    visitor: str
    name: str  # of the visitor's file, to be shown
    folder: Path
    source: Path
    settings: SoundSettings
    key: Key
    info: VideoInfo
    windows: int
    added: float = field(default_factory=time.time)
    state: State = State.queued
    ended: float | None = None
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    texts: tuple[Text | None, Text | None] = (None, None)  # the prompts as the networks read them
    ready: deque[Window] = field(default_factory=deque)  # decoded, and not yet computed
    decoded: bool = False  # all windows are, or were, ready
    made: list[Made] = field(default_factory=list)  # of each window, in order
    computed: int = 0  # windows; `made` is forgotten in the end
    size: int = 0  # bytes of its files
    sending: int = 0  # answers that read its files now
    examining: threading.Lock = field(default_factory=threading.Lock)

    @property
    def samples(self) -> int:
        """Samples of the sound."""
        return round(self.info.seconds * RATE)


class Jobs:
    """Knows every job by its id. Several threads may use it."""

    def __init__(self, folder: Path, limits: Limits, changed: Callable[[], None]) -> None:
        """Begin without jobs.

        Args:
            folder: for the folders of jobs.
            changed: is called, from any thread, when a job has changed.
        """
        self.folder, self.limits, self.changed = folder, limits, changed
        self.closed = False
        self._lock = threading.RLock()
        self._jobs: dict[str, Job] = {}
        # Of uploads, by the id of the job to come: whose they are, and their bytes.
        self._reserved: dict[str, tuple[str, int]] = {}

    def get(self, id: str) -> Job | None:
        """Return the job of an id, if there is one."""
        with self._lock:
            return self._jobs.get(id)

    def unfinished(self, visitor: str | None = None) -> int:
        """Return how many jobs wait or run, of all visitors or of one."""
        with self._lock:
            return sum(
                not job.state.is_final and visitor in (None, job.visitor)
                for job in self._jobs.values()
            )

    def count(self, state: State) -> int:
        """Return how many jobs are in a state."""
        with self._lock:
            return sum(job.state is state for job in self._jobs.values())

    def stored(self, visitor: str | None = None) -> int:
        """Return the bytes of all files, or of a visitor's; uploads count as if they were there."""
        with self._lock:
            files = [(job.visitor, job.size) for job in self._jobs.values()]
            every = [*files, *self._reserved.values()]
            return sum(size for whose, size in every if visitor in (None, whose))

    def reserve(self, visitor: str, size: int) -> Path:
        """Make a folder for the upload of a visitor; its name is the id of the job.

        One visitor gets half of what there is for all.

        Raises:
            Refused: there are enough jobs or files, or the server is about to stop.
        """
        limits, size = self.limits, 2 * size  # the result is about as large as the video
        with self._lock:
            self.check(visitor)
            uploads = [whose for whose, _ in self._reserved.values()]
            if 2 * uploads.count(visitor) >= limits.uploads:
                raise Refused(429, "you upload too many videos at once: wait", retry_after=5)
            if len(uploads) >= limits.uploads:
                raise Refused(503, "other videos are being uploaded: try again", retry_after=5)
            if self.stored(visitor) + size > limits.stored // 2:
                raise Refused(429, "your results use up your space: remove some", retry_after=60)
            if self.stored() + size > limits.stored:
                raise Refused(503, "the server's space is used up: try later", retry_after=60)
            folder = self.folder / secrets.token_urlsafe(16)
            folder.mkdir()
            self._reserved[folder.name] = (visitor, size)
            return folder

    def check(self, visitor: str) -> None:
        """Check that there may be one more job.

        Raises:
            Refused: there may not.
        """
        with self._lock:
            if self.closed:
                raise Refused(503, "the server is about to stop: try later", retry_after=60)
            if self.unfinished(visitor) >= self.limits.each:
                raise Refused(
                    429,
                    f"you have {self.limits.each} jobs under way: wait for one of them",
                    retry_after=10,
                )
            if self.unfinished() >= self.limits.queue:
                raise Refused(503, "the queue is full: try again", retry_after=20)

    def release(self, folder: Path, *, keep: bool = False) -> None:
        """End the reservation of an upload; its folder goes, unless its job was added."""
        with self._lock:
            self._reserved.pop(folder.name, None)
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)

    def add(self, job: Job) -> None:
        """Add a job.

        Raises:
            Refused: there are enough by now.
        """
        with self._lock:
            self.check(job.visitor)
            self._jobs[job.id] = job
        self.changed()

    def begin(self, job: Job) -> bool:
        """Note that a job is worked on; return False if it is over already."""
        with self._lock:
            if job.state.is_final:
                return False
            job.state = State.running
        self.changed()
        return True

    def end(self, job: Job, state: State, error: str | None = None) -> bool:
        """Set the final state of a job; return False if it has one already."""
        with self._lock:
            if job.state.is_final:
                return False
            job.state, job.error, job.ended = state, error, time.time()
            job.made.clear()
            job.texts = (None, None)
            if state is not State.done:
                job.size = 0
        if state is not State.done:
            shutil.rmtree(job.folder, ignore_errors=True)
        self.changed()
        return True

    def forget(self, job: Job) -> None:
        """Remove a job and its files; those that are being sent go afterwards."""
        self.end(job, State.cancelled)
        with self._lock:
            self._jobs.pop(job.id, None)
            being_sent = job.sending > 0
        if not being_sent:
            shutil.rmtree(job.folder, ignore_errors=True)

    @contextmanager
    def sent(self, job: Job) -> Iterator[None]:
        """Keep the files of a job while the block sends one of them."""
        with self._lock:
            job.sending += 1
        try:
            yield
        finally:
            with self._lock:
                job.sending -= 1
                last = not job.sending and job.id not in self._jobs
            if last:
                shutil.rmtree(job.folder, ignore_errors=True)

    def expire(self, now: float | int | None = None) -> None:
        """Forget the jobs that ended long ago."""
        now = time.time() if now is None else now
        with self._lock:
            old = [
                job
                for job in self._jobs.values()
                if job.ended is not None and now - job.ended > self.limits.keep
            ]
        for job in old:
            self.forget(job)

    def open(self) -> list[Job]:
        """Return the jobs that wait or run."""
        with self._lock:
            return [job for job in self._jobs.values() if not job.state.is_final]
