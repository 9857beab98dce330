"""How fast a run is: the time of its steps, and the share of what its devices could do."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from mfm_jax.cost import chips, flops
from mfm_jax.runtime import distributed

WARM = 3
"""Steps before a profile: the first is compiled, and the next ones wait for memory and data."""


class Speed:
    """A clock over the steps of a run, which stands while anything else is done.

    The first step after the start is left out, since it is compiled. With the operations of a step
    and the devices' peak known there is the MFU: the share of the peak, in bfloat16, that the
    operations of the model are.
    """

    def __init__(self, clips: int, *, devices: int, peak: float | None) -> None:
        self.clips, self.devices, self.peak = clips, devices, peak
        self.operations: int | None = None  # of a step, on all devices together
        self._warm, self._since = False, None  # type: bool, float | None
        self._lap, self._whole = (0, 0.0), (0, 0.0)  # steps and seconds

    @classmethod
    def of(cls, clips: int, devices: list[jax.Device]) -> "Speed":
        """Of steps of `clips` on these devices, which are all of one kind."""
        return cls(clips, devices=len(devices), peak=chips.peak_flops(devices[0].device_kind))

    def count(self, step: Callable[..., Any], *arguments: Any) -> None:
        """Count the operations of `step(*arguments)`, once, and only where it leads to an MFU."""
        if self.peak is None or self.operations is not None:
            return
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments
        )
        try:
            self.operations = flops.count_flops(step, *shapes)
        except ValueError as error:
            distributed.say(f"the MFU is not known: {error}")
            self.peak = None

    def go(self) -> None:
        """Let the clock run; it may do so already."""
        if self._since is None:
            self._since = time.perf_counter()

    def halt(self) -> None:
        """Let the clock stand: no step is under way."""
        self._lap = (self._lap[0], self._lap[1] + self._passed())
        self._since = None

    def stepped(self) -> None:
        """One more step is done."""
        passed = self._passed()
        self._since = time.perf_counter()
        if self._warm:
            self._lap = (self._lap[0] + 1, self._lap[1] + passed)
        self._warm = True

    def lap(self) -> dict[str, float]:
        """Of the steps since the last lap; empty where there was none."""
        lap, self._lap = self._lap, (0, 0.0)
        self._whole = (self._whole[0] + lap[0], self._whole[1] + lap[1])
        return self._rates(*lap)

    def whole(self) -> dict[str, float]:
        """Of all steps; empty where there was none."""
        return self._rates(self._whole[0] + self._lap[0], self._whole[1] + self._lap[1])

    def _passed(self) -> float:
        return 0.0 if self._since is None else time.perf_counter() - self._since

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        if not steps:
            return {}
        rates = {"seconds": seconds / steps, "clips_per_second": steps * self.clips / seconds}
        if self.peak is not None and self.operations is not None:
            rates["mfu"] = self.operations * steps / (seconds * self.devices * self.peak)
        return rates


class Profile:
    """A trace of `count` steps, once a few are done, for the tools that show one.

    Of several processes only the first is traced. With a count of 0 nothing is.
    """

    def __init__(self, folder: Path, *, start: int, count: int) -> None:
        self.folder, self.first, self.end = folder, start + WARM, start + WARM + count
        self._wanted, self._open = count > 0 and jax.process_index() == 0, False

    def due(self, done: int) -> bool:
        """Whether it begins or ends once `done` steps are."""
        return done == self.first if self._wanted else self._open and done == self.end

    def turn(self) -> None:
        """Begin, or end what has begun; no step is under way."""
        if self._open:
            self.close()
        else:
            jax.profiler.start_trace(self.folder)
            self._wanted, self._open = False, True

    def close(self) -> None:
        """End the trace, and say where it is."""
        if self._open:
            self._open = False
            jax.profiler.stop_trace()
            print(
                f"profile: {self.folder}: open the .trace.json.gz in it at ui.perfetto.dev, or "
                f"run: pip install xprof && xprof {self.folder}",
                flush=True,
            )
        elif self._wanted:
            self._wanted = False
            print(f"profile: none, the run ended before step {self.first + 1}", flush=True)


def peak_memory() -> int | None:
    """The most bytes that a device of this process held; None where devices do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s), default=None)
