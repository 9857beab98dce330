"""The learning curves of claim (c), as a table and as a figure."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm_jax.storage.files import atomic_write
from miniature.measures import SCORES, Line, ratio
from miniature.report import CURVES, LINEAR
from miniature.runs import Run

COLUMNS = ("part", "share", "number", "seed", "score", "value")
COLOURS = {"linear_pooled": "tab:orange", "linear_flat": "tab:green"}
PARTS = {"clips": "training clips, %", "steps": "training steps, %"}


def write_csv(target: Path, runs: Sequence[Run], lines: Sequence[Line]) -> None:
    """Write a CSV with a row for each score of each run on the curves."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as part, part.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for run, line in zip(runs, lines, strict=True):
            if run.part not in PARTS:
                continue
            head = [run.part, run.share, line[run.part], line["seed"]]
            for name in CURVES:
                writer.writerow([*head, name, f"{ratio([line], name).values[0]:.5f}"])


def draw(target: Path, needed: Mapping[str, Any]) -> None:
    """Draw the curves: a row of axes for clips and one for steps, a column for each score.

    Error bars are standard deviations over seeds. Dashed lines are the linear mappers of CAVP
    alone, fully trained.
    """
    figure = Figure(figsize=(3 * len(CURVES), 5.6), layout="constrained")
    axes = figure.subplots(len(PARTS), len(CURVES), squeeze=False)
    for row, (part, label) in zip(axes, PARTS.items(), strict=True):
        for axis, name in zip(row, CURVES, strict=True):
            points = needed["curves"][part][name]
            axis.errorbar(
                [100 * p["share"] for p in points],
                [p["mean"] for p in points],
                yerr=[p["spread"] for p in points],
                marker="o", markersize=3, capsize=2, label="dual, gpt2",
            )  # fmt: skip
            for kind in LINEAR:
                height = needed["targets"][name][kind]
                axis.axhline(height, ls="--", color=COLOURS[kind], label=f"cavp, {kind}")
            axis.set_xscale("log")
            axis.set_xticks([100 * p["share"] for p in points])
            axis.set_xticklabels([f"{100 * p['share']:g}" for p in points])
            axis.minorticks_off()
            axis.set_xlabel(label)
            axis.set_title(SCORES[name].label)
    axes[0][0].legend(fontsize="small")
    FigureCanvasAgg(figure)
    with atomic_write(target) as part_file:
        figure.savefig(part_file, dpi=110, metadata={"Software": None})
