"""Book where the time of a run goes: every second once, over all restarts.

`goodput.jsonl` in the run's folder has a line for each report and each save: the seconds of this
process so far, by phase. The goodput is the share of the wall time in which steps ran whose result
was kept.
"""

import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mfm_jax.runtime.throughput import duration
from mfm_jax.storage.json_lines import JsonLines, read_json_lines

NAME = "goodput.jsonl"
STEP, COMPILE, REDONE, DOWN = "step", "compile", "redone", "down"
PHASES = {
    "start": "start of the processes, networks and data",
    COMPILE: "tracing and compiling",
    "restore": "reading checkpoints",
    "input": "waiting for batches",
    STEP: "steps",
    "evaluation": "held-out scores and samples",
    "save": "waiting for checkpoints to be written",
    "finish": "the bundle at the end",
    REDONE: "steps, and what belongs to them, that a restart did again",
    DOWN: "from the last report of a process to the start of the next",
}
WORK = ("input", STEP, "evaluation", "save")
"""Phases whose time is lost if a run goes on from a checkpoint before them."""


class Line(NamedTuple):
    """The time that one process had booked once `step` steps were done."""

    began: float  # when the process started, as unix time; it tells processes apart
    time: float  # when it wrote this, as unix time
    step: int
    seconds: Mapping[str, float]


class Goodput:
    """Books the time of this process by phase.

    The phase is `start` at first. Compiling is booked apart from the phase that it happens in.

    Of several processes of a run only the first keeps lines.

    Args:
        workdir: the folder of the run.
        began: from when on time is booked, as unix time; now by default.
    """

    def __init__(self, workdir: Path, began: float | None = None) -> None:
        self.file = JsonLines(workdir / NAME) if jax.process_index() == 0 else None
        self.began = time.time() if began is None else began
        self._before: Mapping[str, float] = {}
        self._booked: dict[str, float] = defaultdict(float)
        self._phase, self._since = "start", self.began
        self._compiled: list[tuple[float, float]] = []  # spans of time, none within another
        self._lock = threading.Lock()
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def resume(self, step: int) -> None:
        """Read what earlier processes booked of this run, which goes on after `step` steps."""
        if self.file is not None:
            self._before = booked(read_lines(self.file.file), step, self.began)
            self.write(step)

    def enter(self, phase: str) -> None:
        """Book the time until now, and what follows under `phase`."""
        with self._lock:
            now = time.time()
            compiled, self._compiled = _length(self._compiled, self._since), []
            self._booked[COMPILE] += compiled
            self._booked[self._phase] += now - self._since - compiled
            self._phase, self._since = phase, now

    @contextmanager
    def on(self, phase: str) -> Iterator[None]:
        """Book the time of the block under `phase`, and then go on with the phase before."""
        before = self._phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def write(self, step: int) -> None:
        """Add a line to the file, now that `step` steps are done."""
        if self.file is not None:
            self.enter(self._phase)
            line = Line(self.began, self._since, step, self._booked)
            self.file.add(line._asdict())

    def summary(self) -> dict[str, Any]:
        """Return the goodput, the wall time since the run began, and its seconds by phase."""
        self.enter(self._phase)
        return summarised(added(self._before, self._booked))

    def close(self) -> None:
        """Write what waits to be written, and stop to listen to the compiler."""
        if self.file is not None:
            self.file.flush()
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        """Note a span of compiling in the main thread; traces contain each other."""
        if not event.startswith("/jax/core/compile/"):
            return
        if threading.current_thread() is threading.main_thread():
            with self._lock:
                now = time.time()
                while self._compiled and self._compiled[-1][0] >= now - duration_secs:
                    self._compiled.pop()
                self._compiled.append((now - duration_secs, now))


def read_lines(file: Path) -> list[Line]:
    """Return the lines of a file, without one that was cut; none if there is no file."""
    found = []
    for told in read_json_lines(file):
        with suppress(TypeError, AttributeError):  # other fields
            line = Line(**told)
            numbers = [*line[:3], *line.seconds.values()]
            if all(isinstance(number, int | float) for number in numbers):
                found.append(line)
    return found


def booked(lines: Sequence[Line], step: int, now: float) -> dict[str, float]:
    """Return the seconds of earlier processes by phase, for one that goes on after `step` steps.

    Args:
        now: when that process started; unix time.
    """
    found: dict[str, float] = defaultdict(float)
    for of_one in reversed(by_process(lines)):
        last = of_one[-1]
        kept = [line for line in of_one if line.step <= step]
        useful = kept[-1].seconds if kept else {}
        for phase, seconds in last.seconds.items():
            lost = seconds - useful.get(phase, 0.0) if phase in WORK else 0.0
            found[phase] += seconds - lost
            found[REDONE] += lost
        found[DOWN] += max(0.0, now - last.time)
        step, now = min(step, of_one[0].step), last.began
    return dict(found)


def total(lines: Sequence[Line]) -> dict[str, float]:
    """Return the seconds of all processes by phase, up to the last line."""
    *earlier, last = by_process(lines)
    before = booked([line for of_one in earlier for line in of_one], last[0].step, last[0].began)
    return added(before, last[-1].seconds)


def by_process(lines: Sequence[Line]) -> list[list[Line]]:
    """Return the lines of each process, the first of which it wrote as it began its steps."""
    found: dict[float, list[Line]] = {}
    for line in lines:
        found.setdefault(line.began, []).append(line)
    return list(found.values())


def added(some: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    """Return the sum of both by phase."""
    return {name: some.get(name, 0.0) + others.get(name, 0.0) for name in {**some, **others}}


def summarised(seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the goodput of what was booked, its sum, and the seconds in the order of `PHASES`."""
    wall = math.fsum(seconds.values())
    return {
        "goodput": seconds.get(STEP, 0.0) / wall if wall else 0.0,
        "wall_seconds": wall,
        "seconds": {phase: round(seconds[phase], 3) for phase in PHASES if seconds.get(phase)},
    }


def told(found: Mapping[str, Any]) -> str:
    """Say a summary in a line: the goodput, and what else took more than a hundredth."""
    wall = found["wall_seconds"]
    others = sorted(found["seconds"].items(), key=lambda item: -item[1])
    shares = [
        f"{phase} {seconds / wall:.0%}"
        for phase, seconds in others
        if phase != STEP and seconds >= 0.01 * wall
    ]
    return f"goodput {found['goodput']:.0%} of {duration(wall)} ({', '.join(shares)})"


def process_start() -> float:
    """Return when this process was started, as unix time; where that is not known, now."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rsplit(b")", 1)[1].split()[19])
        up = time.clock_gettime(time.CLOCK_BOOTTIME)
        return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return time.time()


def _length(spans: Sequence[tuple[float, float]], since: float) -> float:
    """Return the length of what of `spans` is after `since`."""
    return math.fsum(max(0.0, end - max(start, since)) for start, end in spans)
