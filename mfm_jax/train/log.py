"""The reports of a run: lines or a progress bar on the terminal, and files in its folder.

`metrics.jsonl` has a line of JSON for each report, and `tensorboard` the same numbers. Sounds go to
`samples`, and the end of the run to `summary.json`.
"""

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from mfm_jax.errors import UserError
from mfm_jax.media.audio import write_sound
from mfm_jax.media.spectrogram import picture
from mfm_jax.runtime.progress import Progress
from mfm_jax.storage.files import atomic_write, write_text
from mfm_jax.storage.json_lines import JsonLines, read_json_lines
from mfm_jax.train.board import Board
from mfm_jax.train.goodput import Goodput, told
from mfm_jax.train.speed import StepTimer, peak_memory
from mfm_jax.typing import Array, Float

REPORTS = "metrics.jsonl"
HELDOUT = "heldout_"
"""Prefix of the names of held-out metrics."""


class NonFinite(UserError):
    """A run whose loss is no longer a number; the message names the step and its clips."""

    exit_code = 1


class Metrics:
    """Reads the metrics of a step while the next one runs, and reports their means.

    Of several processes only the first reports. A run that goes on after step `start` drops what
    was reported of later steps.

    Args:
        workdir: the folder of the run.
        steps: of the whole run.
        every: steps from one report to the next.
        clips: which clips a step was given.
    """

    def __init__(
        self,
        workdir: Path,
        timer: StepTimer,
        goodput: Goodput | None = None,
        *,
        start: int = 0,
        steps: int = 0,
        every: int,
        clips: Callable[[int], Sequence[str]] = lambda step: (),
    ) -> None:
        self.workdir, self.timer, self.goodput = workdir, timer, goodput
        self.start, self.every = start, every
        self.steps, self.clips, self._began = steps, clips, time.monotonic()
        self._pending: tuple[int, Mapping[str, Array]] | None = None
        self._sums: dict[str, float] = {}
        self._count = 0
        self._lines = JsonLines(self.file)
        self._first, self._board, self._bar = jax.process_index() == 0, None, None
        if self._first:
            kept = _kept(self._lines, start)
            self._scores = [line for line in kept if _is_score(line)]
            self._again = [line.keys() for line in kept if line["step"] == start]
            self._board = Board(workdir / "tensorboard", start=start)
            if sys.stdout.isatty() and sys.stderr.isatty():
                self._bar = Progress(steps, "steps", done=start)

    @property
    def file(self) -> Path:
        """The file that the lines are written to."""
        return self.workdir / REPORTS

    def add(self, step: int, metrics: Mapping[str, Array]) -> None:
        """Add the metrics of a step that may still be running.

        Raises:
            NonFinite: the loss of the step before is not finite.
        """
        before, self._pending = self._pending, (step, metrics)
        self._read(before)

    def flush(self) -> None:
        """Wait for the last step and pause the timer until `StepTimer.start`.

        Raises:
            NonFinite: its loss is not finite.
        """
        before, self._pending = self._pending, None
        self._read(before)
        self.timer.pause()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Report `values` of `step`."""
        if self._first:
            self._say(step, values)
            self._keep(step, values)

    def sounds(self, step: int, waves: Mapping[str, Float[np.ndarray, " A"]]) -> None:
        """Write the sound and the spectrogram of each clip."""
        folder = self.workdir / "samples" / f"step-{step}"
        if self._board is None or (step == self.start > 0 and folder.exists()):
            return
        folder.mkdir(parents=True, exist_ok=True)
        for name, wave in waves.items():
            file, image = _file_name(name), picture(wave)
            write_sound(folder / f"{file}.wav", wave)
            with atomic_write(folder / f"{file}.png") as part:
                Image.fromarray(image).save(part)
            # Event files hold UTF-8 alone.
            tag = name.encode("utf-8", "backslashreplace").decode()
            self._board.sound(step, f"samples/{tag}", wave, image)

    def summarise(self, bundle: Path | None, best: str) -> None:
        """Write the summary of a finished run.

        Args:
            best: the metric that chose the best checkpoint; empty for the first one.
        """
        devices = jax.devices()
        found = {
            "steps": self.steps,
            "start": self.start,  # what follows is since then
            "wall_seconds": time.monotonic() - self._began,
            **self.timer.total(),
            "devices": len(devices),
            "device": devices[0].device_kind,
            "peak_memory": peak_memory(),
            "heldout": self._heldout(best),
            "goodput": None if self.goodput is None else self.goodput.summary(),
            "bundle": None if bundle is None else str(bundle),
        }
        write_text(self.workdir / "summary.json", json.dumps(found, indent=1) + "\n")
        print("\n".join(_told(found)), flush=True)

    def close(self) -> None:
        """Close the files and the bar."""
        self._lines.flush()
        for part in (self._bar, self._board):  # a full disk raises in the second
            if part is not None:
                part.close()
        self._bar = None

    def _heldout(self, best: str) -> dict[str, Any] | None:
        """Return the least and the last value of the metric `best`, by default the first one."""
        if not self._scores:
            return None
        last = self._scores[-1]
        name = HELDOUT + best if best else next(n for n in last if n.startswith(HELDOUT))
        scores = [{"step": s["step"], "value": s[name]} for s in self._scores if name in s]
        least = min(scores, key=lambda score: score["value"])
        return {"metric": name.removeprefix(HELDOUT), "best": least, "last": scores[-1]}

    def _say(self, step: int, values: Mapping[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar is None:
            print(f"step {step}  {shown}", flush=True)
        elif "loss" in values:
            self._bar.show(_brief(values))
        else:
            self._bar.say(f"step {step}  {shown}")

    def _keep(self, step: int, values: Mapping[str, float]) -> None:
        line = {"step": step, **values}
        if step == self.start and line.keys() in self._again:
            return  # evaluated before the run was stopped, and once more when it went on
        if _is_score(line):
            self._scores.append(line)
        self._lines.add(line)
        assert self._board is not None
        self._board.scalars(step, values)

    def _read(self, entry: tuple[int, Mapping[str, Array]] | None) -> None:
        if entry is None:
            return
        step, metrics = entry
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.timer.step_done()
        if not math.isfinite(values["loss"]):
            raise NonFinite(
                f"the loss of step {step} is {values['loss']}: lower "
                f"optimizer.learning_rate, or look at its clips ({', '.join(self.clips(step))}); "
                "the checkpoints before it are good"
            )
        if self._bar is not None:
            self._bar.advance()
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.every == 0:
            means = {name: total / self._count for name, total in self._sums.items()}
            self.write(step, {**means, **self.timer.lap(), **self._goodput(step)})
            self._sums, self._count = {}, 0

    def _goodput(self, step: int) -> dict[str, float]:
        if self.goodput is None:
            return {}
        self.goodput.write(step)
        return {"goodput": self.goodput.summary()["goodput"]}


def _kept(file: JsonLines, start: int) -> list[dict[str, Any]]:
    """Return the lines up to step `start`, where the run resumes; the file loses later ones.

    A kill leaves lines of steps that are done again, and maybe a half line.
    """
    lines = []
    for line in read_json_lines(file.file) if start else ():
        numbers = all(isinstance(x, int | float) for x in line.values())
        if numbers and line.get("step", math.inf) <= start:
            lines.append(line)
    file.replace(lines)
    return lines


LONGEST = 200
"""Bytes of a file's name, without its suffix."""


def _file_name(clip: str) -> str:
    """Return a name for files of a clip: its id, or of a long one the beginning and a digest."""
    name = clip.replace("/", "_").encode("utf-8", "surrogateescape")
    if len(name) > LONGEST:
        digest = hashlib.sha256(name).hexdigest()[:16]
        name = name[: LONGEST - len(digest) - 1] + f"-{digest}".encode()
    return os.fsdecode(name)


def _is_score(line: Mapping[str, Any]) -> bool:
    return any(name.startswith(HELDOUT) for name in line)


def _brief(values: Mapping[str, float]) -> str:
    """Format a report for the progress bar."""
    parts = [f"loss {values['loss']:.4g}"]
    if "seconds" in values:
        parts += [f"{values['seconds']:.3g} s/step", f"{values['clips_per_second']:.4g} clips/s"]
    if "mfu" in values:
        parts.append(f"MFU {values['mfu']:.0%}")
    return ", ".join(parts)


def _told(found: Mapping[str, Any]) -> list[str]:
    """Format a summary as lines."""
    what = f"{found['steps']} steps on {found['devices']} x {found['device']}"
    if found["start"]:
        what += f", of which {found['steps'] - found['start']} since it went on"
    timer = [f"{found['wall_seconds']:.0f} s"]
    if "clips_per_second" in found:
        timer.append(f"{found['clips_per_second']:.4g} clips/s")
    if "mfu" in found:
        timer.append(f"MFU {found['mfu']:.0%}")
    lines = [f"{what}: {', '.join(timer)}"]
    if found["peak_memory"] is not None:
        lines.append(f"at most {found['peak_memory'] / 2**30:.2f} GiB on a device")
    if found["goodput"] is not None:
        lines.append(told(found["goodput"]))
    if heldout := found["heldout"]:
        best, last = heldout["best"], heldout["last"]
        lines.append(
            f"held-out {heldout['metric']}: best {best['value']:.4g} at step {best['step']}, "
            f"last {last['value']:.4g} at step {last['step']}"
        )
    if found["bundle"] is not None:
        lines.append(f"bundle: {found['bundle']}")
    return lines
