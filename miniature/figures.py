"""Draws the figures of the reports in `docs/` from the results in `docs/miniature/`."""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mfm_jax.cli import arguments as options
from mfm_jax.data.clips import DataError
from mfm_jax.storage.files import atomic_write
from miniature.document import LABELS, RESULTS, WAYS
from miniature.report import PRIMARY

CHAIN = [way for way in WAYS if way != "normalised"]
"""Sounds, from the true one to that of another clip."""
COMPARED = ("event_f1", "material", "onset_f1_100")
POOLS = ((8, 8), (4, 4), (2, 2), (1, 8))
"""LOA grids, from the coarsest to the default."""
SYSTEMS = {
    "cavp": "CAVP", "timechat": "TimeChat", "cavp twice": "CAVP twice",
    "timechat twice": "TimeChat twice", "linear_pooled": "a linear map, pooled",
    "linear_flat": "a linear map of all tokens",
}  # fmt: skip

Found = Callable[[str], Any]
"""Reads a result by its name."""


def chain(found: Found) -> Figure:
    """Draw what each part of the way from video to sound costs, on both grades."""
    figure, (axis,) = _axes(1, (7.2, 3.2))
    grades = {"base grade": found("scores"), "hard grade": found("hard_scores")}
    places = np.arange(len(CHAIN))
    for i, (grade, result) in enumerate(grades.items()):
        heights = [result["scores"][way]["event_f1"] for way in CHAIN]
        bars = axis.bar(places + 0.4 * i - 0.2, heights, 0.38, label=grade)
        axis.bar_label(bars, [f"{height:.2f}" for height in heights], fontsize=8)
    axis.set_xticks(places, [WAYS[way] for way in CHAIN])
    axis.set(ylabel="event F1", ylim=(0, 1.1))
    axis.legend(frameon=False)
    return figure


def claims(found: Found) -> Figure:
    """Draw the differences that decide claims (a) and (b), with their intervals."""
    figure, axes = _axes(len(COMPARED), (8.4, 2.9), sharey=True)
    rows = [
        (f"({claim}) over {_short(theirs)}", comparison["scores"])
        for claim, pairs in PRIMARY.items()
        for (_, theirs), comparison in zip(
            pairs, found("claims")["claims"][claim]["comparisons"], strict=True
        )
    ]
    for axis, score in zip(axes, COMPARED, strict=True):
        for place, (_, scores) in enumerate(rows):
            gap = scores[score]
            decided = "tab:blue" if gap["verdict"] != "undecided" else "tab:gray"
            axis.plot((gap["low"], gap["high"]), (place, place), color=decided)
            axis.plot(gap["difference"], place, "o", color=decided)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=LABELS[score], xlabel="difference", xlim=(-0.1, 1))
    axes[0].set_yticks(range(len(rows)), [row[0] for row in rows])
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


def _short(system: str) -> str:
    """Return what a system of the claims has in place of ours."""
    encoders, mapper = system.split(", ")
    return SYSTEMS[encoders if mapper == "gpt2" else mapper]


def grid(found: Found) -> Figure:
    """Draw event F1 over the LOA grid, of the mapper and of true LOA."""
    figure, (axis,) = _axes(1, (5.6, 3))
    result = found("unknowns")
    rows = {row["change"]: row["scores"] for row in result["rows"]}
    sides = {
        "true LOA": [result["ceilings"][f"true LOA, pool {pool}"] for pool in POOLS],
        "mapper": [rows.get(f"LOA pool {pool}", rows["default"]) for pool in POOLS],
    }
    for label, scores in sides.items():
        event = [score["event_f1"] for score in scores]
        axis.errorbar(
            range(len(POOLS)), [e["mean"] for e in event], [e["spread"] for e in event],
            marker="o", capsize=3, label=label,
        )  # fmt: skip
    axis.set_xticks(range(len(POOLS)), [f"{t} x {f}\n{0.16 * t:.2f} s" for t, f in POOLS])
    axis.set(xlabel="patches pooled to a token (time x mel), and its length", ylim=(0, 1))
    axis.set_ylabel("event F1")
    axis.legend(frameon=False)
    return figure


def training(found: Found) -> Figure:
    """Draw the mapper's LOA error on held-out clips over both stages."""
    figure, (axis,) = _axes(1, (6.4, 3))
    start = 0
    for i, stage in enumerate(("mapper", "stage2")):
        points = [p for p in found(f"training/{stage}") if "heldout_loa_error" in p]
        steps = [start + p["step"] for p in points]
        axis.plot(
            steps, [p["heldout_loa_error"] for p in points], "o-", ms=3, label=f"stage {i + 1}"
        )
        start = steps[-1]
    axis.axhline(points[-1]["heldout_loa_error_mean"], ls="--", color="gray", label="the mean LOA")
    axis.set(xlabel="steps", ylabel="LOA error, held-out clips", yscale="log")
    axis.set_yticks([0.07, 0.1, 0.2, 0.4, 1, 2], ["0.07", "0.1", "0.2", "0.4", "1", "2"])
    axis.minorticks_off()
    axis.legend(frameon=False)
    return figure


def timing(found: Found) -> Figure:
    """Draw the scores of the routes to timing, the ceilings from true LOA last."""
    figure, axes = _axes(len(COMPARED), (8.4, 3.2), sharey=True)
    rows = found("timing")["rows"]
    for axis, score in zip(axes, COMPARED, strict=True):
        for place, (name, row) in enumerate(rows.items()):
            its = row["scores"][score]
            color = "tab:gray" if name.startswith("true LOA") else "tab:blue"
            axis.errorbar(its["mean"], place, xerr=its["spread"], fmt="o", capsize=3, color=color)
        axis.set(title=LABELS[score], xlim=(0, 1))
    axes[0].set_yticks(range(len(rows)), list(rows))
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


FIGURES = {
    "chain": chain, "claims": claims, "grid": grid, "training": training, "timing": timing
}  # fmt: skip


def _axes(count: int, size: tuple[float, float], **shared: Any) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, count, squeeze=False, **shared)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def reader(results: Path) -> Found:
    """Return what reads results by name: `NAME.json`, or the lines of `NAME.jsonl`."""

    def found(name: str) -> Any:
        try:
            lines = results / f"{name}.jsonl"
            if "/" in name:
                return [json.loads(line) for line in lines.read_text().splitlines()]
            return json.loads((results / f"{name}.json").read_text())
        except (OSError, ValueError):
            raise DataError(
                f"there is no result {name} in {results}: run this in the root of the repository"
            ) from None

    return found


def add_figures(parser: argparse.ArgumentParser) -> None:
    """Add the options of `figures`."""
    parser.add_argument(
        "--results", type=options.path, default=RESULTS, help="folder of results and figures"
    )
    parser.set_defaults(run=run_figures)


def run_figures(args: argparse.Namespace) -> None:
    """Draw all figures into the folder of results."""
    for name, draw in FIGURES.items():
        figure = draw(reader(args.results))
        with atomic_write(args.results / f"figure_{name}.png") as part:
            figure.savefig(part, dpi=120, metadata={"Software": None})
