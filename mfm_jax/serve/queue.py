"""Which windows are computed together: those of several visitors, in turn.

Visitors take turns: their first jobs begin in the order in which they came, then their second ones,
so that who sends many videos does not hold up who sends one. Windows of the jobs that have begun
are taken in turn, so that a long video does not hold up a short one. A batch is computed as soon as
it is full; one that is not full waits while the device is busy.
"""

import threading
import time
from bisect import insort
from collections import deque
from collections.abc import Callable

from mfm_jax.inference.stream import IN_FLIGHT
from mfm_jax.media.windows import Window
from mfm_jax.serve.jobs import Job
from mfm_jax.serve.offer import Key

PATIENCE = 0.03
"""Seconds for which an idle device waits for a batch to fill up, if windows are being decoded."""

Item = tuple[Job, Window]


class Queue:
    """The jobs that wait, and the windows of those that have begun. Several threads use it."""

    def __init__(self, most: Callable[[Key], int], active: int) -> None:
        """Begin without jobs.

        Args:
            most: returns the windows of a key that can be computed at once; 0 for none yet.
            active: jobs that are decoded and computed at a time.
        """
        self._most, self._active_most = most, active
        self._changed = threading.Condition()
        self._waiting: list[tuple[int, int, Job]] = []  # by their turn, and when they came
        self._turn = 0  # of the job that began last
        self._last: dict[str, int] = {}  # turns of the last jobs of visitors
        self._came = 0
        self._active: deque[Job] = deque()  # those that were served last are at the end
        self._under_way = 0  # batches
        self._stopped = False

    def put(self, job: Job) -> None:
        """Add a job behind those whose turn is the same or before."""
        with self._changed:
            turn = max(self._turn, self._last.get(job.visitor, -1) + 1)
            insort(self._waiting, (turn, self._came, job))
            self._came += 1
            self._last = {who: at for who, at in self._last.items() if at >= self._turn}
            self._last[job.visitor] = turn
            self._changed.notify_all()

    def position(self, job: Job) -> int:
        """Return the place of a job among those that wait, from 1, or 0."""
        with self._changed:
            waiting = [each for _, _, each in self._waiting]
            return waiting.index(job) + 1 if job in waiting else 0

    def next_job(self) -> Job | None:
        """Wait for the next job to decode; None once the queue is stopped."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or (self._waiting and len(self._active) < self._active_most)
            )
            if self._stopped:
                return None
            self._turn, _, job = self._waiting.pop(0)
            self._active.append(job)
            return job

    def offer(self, job: Job, window: Window) -> bool:
        """Add a decoded window of a job, once there is room; return False if it is not wanted."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._gone(job) or len(job.ready) < max(1, self._most(job.key))
            )
            if self._gone(job):
                return False
            job.ready.append(window)
            self._changed.notify_all()
            return True

    def decoded(self, job: Job) -> None:
        """Note that a job has no more windows."""
        with self._changed:
            job.decoded = True
            self._leave(job)
            self._changed.notify_all()

    def next_batch(self) -> list[Item]:
        """Wait for windows of one key to compute together; none once the queue is stopped."""
        until: float | None = None
        with self._changed:
            while not self._stopped:
                alike = self._alike() if self._under_way < IN_FLIGHT else []
                if not alike:
                    until = None
                    self._changed.wait()
                    continue
                until = until or time.monotonic() + PATIENCE
                left = until - time.monotonic()
                if self._is_worth(alike, left):
                    return self._take(alike)
                self._changed.wait(left if left > 0 else None)
        return []

    def returned(self) -> None:
        """Note that the device has done a batch."""
        with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    def drop(self, job: Job) -> None:
        """Forget a job that is over."""
        with self._changed:
            self._waiting = [turn for turn in self._waiting if turn[2] is not job]
            if job in self._active:
                self._active.remove(job)
            job.ready.clear()
            self._changed.notify_all()

    def wake(self) -> None:
        """Look again: more windows of a key can be computed at once than before."""
        with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Let no thread wait any longer."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def _gone(self, job: Job) -> bool:
        return self._stopped or job not in self._active

    def _leave(self, job: Job) -> None:
        if job.decoded and not job.ready and job in self._active:
            self._active.remove(job)

    def _alike(self) -> list[Job]:
        """Return the jobs with windows of the key that has waited longest and can be computed."""
        head = next((job for job in self._active if job.ready and self._most(job.key)), None)
        return [job for job in self._active if head and job.ready and job.key == head.key]

    def _is_worth(self, alike: list[Job], left: float) -> bool:
        """Return whether to compute the windows of these jobs now."""
        key = alike[0].key
        if sum(len(job.ready) for job in alike) >= self._most(key):
            return True
        if self._under_way:
            return False  # by the time that it is done there may be more
        more = any(job.key == key and not job.decoded for job in self._active)
        return left <= 0 or not more

    def _take(self, alike: list[Job]) -> list[Item]:
        most = self._most(alike[0].key)
        group: list[Item] = []
        while len(group) < most and any(job.ready for job in alike):
            for job in alike:
                if job.ready and len(group) < most:
                    group.append((job, job.ready.popleft()))
        for job in reversed(dict.fromkeys(job for job, _ in reversed(group))):
            self._active.remove(job)
            self._active.append(job)
            self._leave(job)
        self._under_way += 1
        self._changed.notify_all()
        return group
