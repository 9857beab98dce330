"""The speed of a run: the time of its steps, and the share of its devices' peak (MFU)."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from mfm_jax.cost import chips, flops
from mfm_jax.runtime import distributed
from mfm_jax.storage.addresses import StorePath
from mfm_jax.storage.files import publish
from mfm_jax.storage.scratch import scratch

WARM = 3
"""Steps before a profile: the first one compiles, and the next ones wait for memory and data."""


class StepTimer:
    """Times the steps of a run; paused while anything else is done.

    The first step is left out, since it compiles. Where the FLOPs of a step and the devices' peak
    are known, it reports the MFU: the model's FLOPs as a share of the bfloat16 peak.
    """

    def __init__(self, clips: int, *, devices: int, peak: float | None) -> None:
        self.clips, self.devices, self.peak = clips, devices, peak
        self.flops: int | None = None  # of a step, on all devices together
        self._warm, self._since = False, None  # type: bool, float | None
        self._lap, self._total = (0, 0.0), (0, 0.0)  # steps and seconds

    @classmethod
    def of(cls, clips: int, devices: list[jax.Device]) -> "StepTimer":
        """Return a timer for steps of `clips` clips on these devices, which are all of one kind."""
        return cls(clips, devices=len(devices), peak=chips.peak_flops(devices[0].device_kind))

    def count_flops(self, step: Callable[..., Any], *arguments: Any) -> None:
        """Count the FLOPs of `step(*arguments)`, once, and only where an MFU can be computed."""
        if self.peak is None or self.flops is not None:
            return
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments
        )
        try:
            self.flops = flops.count_flops(step, *shapes)
        except ValueError as error:
            distributed.say(f"the MFU is unknown: {error}")
            self.peak = None

    def start(self) -> None:
        """Start the timer, if it is paused."""
        if self._since is None:
            self._since = time.perf_counter()

    def pause(self) -> None:
        """Pause the timer: no step is running."""
        self._lap = (self._lap[0], self._lap[1] + self._passed())
        self._since = None

    def step_done(self) -> None:
        """Record the end of a step."""
        passed = self._passed()
        self._since = time.perf_counter()
        if self._warm:
            self._lap = (self._lap[0] + 1, self._lap[1] + passed)
        self._warm = True

    def lap(self) -> dict[str, float]:
        """Return the rates of the steps since the last lap; empty if there was none."""
        lap, self._lap = self._lap, (0, 0.0)
        self._total = (self._total[0] + lap[0], self._total[1] + lap[1])
        return self._rates(*lap)

    def total(self) -> dict[str, float]:
        """Return the rates of all steps; empty if there was none."""
        return self._rates(self._total[0] + self._lap[0], self._total[1] + self._lap[1])

    def _passed(self) -> float:
        return 0.0 if self._since is None else time.perf_counter() - self._since

    def _rates(self, steps: int, seconds: float) -> dict[str, float]:
        if not steps:
            return {}
        rates = {"seconds": seconds / steps, "clips_per_second": steps * self.clips / seconds}
        if self.peak is not None and self.flops is not None:
            rates["mfu"] = self.flops * steps / (seconds * self.devices * self.peak)
        return rates


class Profile:
    """A profiler trace of `count` steps, after the first few.

    Of several processes only the first is traced. A count of 0 traces nothing.
    """

    def __init__(self, folder: Path, *, start: int, count: int) -> None:
        self.folder, self.first, self.end = folder, start + WARM, start + WARM + count
        self._wanted, self._open = count > 0 and jax.process_index() == 0, False
        self._here, self._ending = folder, ExitStack()

    def due(self, done: int) -> bool:
        """Return True if the trace starts or ends once `done` steps are done."""
        return done == self.first if self._wanted else self._open and done == self.end

    def toggle(self) -> None:
        """Start the trace, or end it; no step may be running."""
        if self._open:
            self.close()
        else:
            here = self.folder
            if isinstance(here, StorePath):
                here = self._ending.enter_context(scratch(here.name))
            jax.profiler.start_trace(here)
            self._here, self._wanted, self._open = here, False, True

    def close(self) -> None:
        """End the trace and print where it is."""
        if self._open:
            self._open = False
            with self._ending:
                jax.profiler.stop_trace()
                if isinstance(self.folder, StorePath):
                    publish(self._here, self.folder)
            print(
                f"profile: {self.folder}: open the .trace.json.gz in it at ui.perfetto.dev, or "
                f"run: pip install xprof && xprof {self.folder}",
                flush=True,
            )
        elif self._wanted:
            self._wanted = False
            print(f"profile: none, the run ended before step {self.first + 1}", flush=True)


def peak_memory() -> int | None:
    """Return the most bytes that a device of this process held; None if devices do not tell."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    return max((s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s), default=None)
