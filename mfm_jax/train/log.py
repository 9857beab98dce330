"""What a run reports: a plain line on the terminal and a line of JSON in `metrics.jsonl`."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax

from mfm_jax.typing import Array


class NonFinite(ValueError):
    """A run whose loss is no number any more; the message names the step and its clips."""


class Metrics:
    """Reads the metrics of a step when the next one is under way, and reports their means.

    Of several processes only the first reports. `clips` says which clips a step was given.
    """

    def __init__(
        self, file: Path, *, every: int, clips: Callable[[int], Sequence[str]] = lambda step: ()
    ) -> None:
        self.file, self.every, self.clips = file, every, clips
        self._pending: tuple[int, Mapping[str, Array]] | None = None
        self._sums: dict[str, float] = {}
        self._count, self._since = 0, time.perf_counter()

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Take the metrics of a step that may still be running.

        Raises:
            NonFinite: the loss of the step before is not finite.
        """
        before, self._pending = self._pending, (step, metrics)
        self._read(before)

    def settle(self) -> None:
        """Wait for the last step.

        Raises:
            NonFinite: its loss is not finite.
        """
        before, self._pending = self._pending, None
        self._read(before)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Report `values` of `step`."""
        if jax.process_index() > 0:
            return
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        print(f"step {step}  {shown}", flush=True)
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def _read(self, entry: tuple[int, Mapping[str, Array]] | None) -> None:
        if entry is None:
            return
        step, metrics = entry
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise NonFinite(
                f"the loss of step {step} is {values['loss']}: lower optimizer.rate, or look at "
                f"its clips ({', '.join(self.clips(step))}); the checkpoints before it are good"
            )
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.every == 0:
            now = time.perf_counter()
            means = {name: total / self._count for name, total in self._sums.items()}
            self.write(step, {**means, "seconds": (now - self._since) / self._count})
            self._sums, self._count, self._since = {}, 0, now
