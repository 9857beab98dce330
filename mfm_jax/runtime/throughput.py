"""How fast a run is: clips a second, times real time, how long the device is idle, time left."""

import time
from collections.abc import Callable
from threading import Lock


class Throughput:
    """Counts what a run has done. Rates count from its first result on, without compilation."""

    def __init__(self, clips: int | None = None, clock: Callable[[], float] = time.monotonic):
        """Begin to count.

        Args:
            clips: how many the run will open.
            clock: returns seconds.
        """
        self._clips, self._clock, self._lock = clips, clock, Lock()
        self._opened = 0
        self._wanted = 0.0  # s of video in the opened clips
        self._done = 0.0  # s of video with a result
        self._done_at_first = 0.0
        self._first: float | None = None  # when the first result came
        self._under_way = 0  # batches
        self._busy = 0.0  # s since the first result in which the device had a batch
        self._busy_since = 0.0

    def open(self, seconds: float) -> None:
        """Count a clip of which `seconds` will be computed."""
        with self._lock:
            self._opened += 1
            self._wanted += seconds

    def skip(self, clips: int = 1) -> None:
        """Count clips of which nothing will be computed."""
        with self._lock:
            if self._clips is not None:
                self._clips -= clips

    def drop(self, seconds: float) -> None:
        """Count `seconds` of opened clips that will not be computed."""
        with self._lock:
            self._wanted -= seconds

    def did(self, seconds: float) -> None:
        """Count `seconds` of video that have a result."""
        with self._lock:
            self._done += seconds
            if self._first is None:
                self._first = self._busy_since = self._clock()
                self._done_at_first = self._done

    def begin_batch(self) -> None:
        """Count a batch that the device is given."""
        with self._lock:
            if not self._under_way:
                self._busy_since = self._clock()
            self._under_way += 1

    def end_batch(self) -> None:
        """Count a batch that the device has done."""
        with self._lock:
            self._under_way -= 1
            if not self._under_way and self._first is not None:
                self._busy += self._clock() - self._busy_since

    @property
    def real_time_factor(self) -> float | None:
        """Seconds of video done in a second; None before the second result."""
        with self._lock:
            elapsed = self._elapsed()
            done = self._done - self._done_at_first
            return done / elapsed if elapsed > 0 and done > 0 else None

    @property
    def idle(self) -> float:
        """Share of the time since the first result in which the device had no batch."""
        with self._lock:
            elapsed = self._elapsed()
            busy = self._busy
            if self._under_way and self._first is not None:
                busy += self._clock() - max(self._busy_since, self._first)
            return max(0.0, 1 - busy / elapsed) if elapsed > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Seconds until the run is over, if its clips that are not yet opened are like the others.

        None before the second result, or if the number of clips is unknown.
        """
        factor = self.real_time_factor
        with self._lock:
            if factor is None or self._clips is None or not self._opened:
                return None
            unopened = max(0, self._clips - self._opened) * self._wanted / self._opened
            return max(0.0, self._wanted - self._done + unopened) / factor

    def __str__(self) -> str:
        """Return the rates in one line; empty before the second result."""
        factor = self.real_time_factor
        if factor is None:
            return ""
        words = [f"{factor:.3g} x real time", f"device idle {self.idle:.0%}"]
        if self._opened and self._wanted > 0:
            words.insert(0, f"{factor * self._opened / self._wanted:.3g} clips/s")
        if (left := self.seconds_left) is not None:
            words.append(f"{duration(left)} left")
        return ", ".join(words)

    def _elapsed(self) -> float:
        return 0.0 if self._first is None else self._clock() - self._first


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
