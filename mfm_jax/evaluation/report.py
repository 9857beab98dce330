"""The report of an evaluation, as JSON and CSV."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mfm_jax.evaluation.catalogue import Metric
from mfm_jax.evaluation.figures import Figure
from mfm_jax.evaluation.measure import Measured
from mfm_jax.storage.files import write_text

REFERENCE = "reference"
SUMMARY = (
    "system", "score", "key", "unit", "better", "value", "low", "high", "n", "left_out", "caution",
)  # fmt: skip
"""Columns of `summary.csv`."""


@dataclass
class Report:
    """The results of an evaluation, and how they were found."""

    protocol: dict[str, Any]
    metrics: list[Metric]
    systems: list[str]
    figures: dict[str, dict[str, Figure]]  # by side and key
    comparisons: list[dict[str, Any]]  # `system`, `against`, and `scores`: a Difference by key
    clips: list[Measured]  # the worst first
    ranks: dict[str, dict[str, float]]  # by system and clip, from 0 (worst) to 1
    not_computed: list[tuple[str, str]] = field(default_factory=list)  # what, and why
    notes: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)  # clips, and why

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON can hold it; what is undefined is null."""
        return {
            "protocol": self.protocol,
            "systems": self.systems,
            "metrics": [metric._asdict() for metric in self.metrics],
            "figures": {
                side: {key: asdict(figure) for key, figure in its.items()}
                for side, its in self.figures.items()
            },
            "comparisons": [
                {**it, "scores": {key: asdict(gap) for key, gap in it["scores"].items()}}
                for it in self.comparisons
            ],
            "notes": self.notes,
            "not_computed": [{"what": what, "why": why} for what, why in self.not_computed],
            "failed": [{"clip": clip, "why": why} for clip, why in self.failed],
            "clips": [
                _finite(
                    asdict(clip) | {"rank": {s: self.ranks[s][clip.name] for s in self.systems}}
                )
                for clip in self.clips
            ],
        }

    def write(self, folder: Path) -> None:
        """Write `report.json`, `summary.csv` and `clips.csv` into a folder."""
        text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
        write_text(folder / "report.json", _printable(text) + "\n")
        write_text(folder / "summary.csv", _printable(_csv(self._summary())))
        write_text(folder / "clips.csv", _printable(_csv(self._clips())))

    def _summary(self) -> Iterator[Sequence[Any]]:
        yield SUMMARY
        for side, its in self.figures.items():
            for metric in self.metrics:
                if (f := its.get(metric.key)) is not None:
                    about = side, metric.label, metric.key, metric.unit, metric.better
                    yield *about, f.value, f.low, f.high, f.n, f.left_out, f.caution

    def _clips(self) -> Iterator[Sequence[Any]]:
        keys = [m.key for m in self.metrics if m.per_clip]
        yield "clip", "system", "rank", *keys
        for clip in self.clips:
            for side, scores in clip.scores.items():
                rank = self.ranks[side][clip.name] if side in self.ranks else None
                yield clip.name, side, rank, *(scores.get(key) for key in keys)

    def table(self) -> Iterator[str]:
        """Yield the main figures as lines of text."""
        names = [*self.systems] + [REFERENCE] * bool(self.figures.get(REFERENCE))
        width = max(len(m.label) for m in self.metrics)
        columns = max(18, *(len(name) for name in names))
        yield " ".join([" " * width, *(name.rjust(columns) for name in names)])
        for metric in self.metrics:
            figures = [self.figures[name].get(metric.key) for name in names]
            if any(figures):
                cells = (_cell(figure, metric.digits).rjust(columns) for figure in figures)
                yield " ".join([metric.label.ljust(width), *cells])


def _cell(figure: Figure | None, digits: int) -> str:
    if figure is None:
        return ""
    if figure.value is None:
        return "undefined"
    half = "" if figure.low is None or figure.high is None else (
        f" ± {(figure.high - figure.low) / 2:z.{digits}f}"
    )  # fmt: skip
    return f"{figure.value:z.{digits}f}{half}{' *' if figure.caution else ''}"


def _csv(rows: Iterator[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if _undefined(cell) else cell for cell in row])
    return out.getvalue()


def _undefined(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if _undefined(value) else value


def _printable(text: str) -> str:
    """Return text that is UTF-8 whatever bytes the names of files have."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
