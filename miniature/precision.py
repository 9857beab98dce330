"""Measures what extraction in bfloat16 costs: in the features, and in a mapper trained on them."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import FeatureSource
from mfm_jax.data.sources import ClipFiles
from mfm_jax.foley.clips import make_clips
from mfm_jax.foley.world import SPLITS, World
from mfm_jax.inference.extract import extract
from mfm_jax.mapper import MapperConfig
from mfm_jax.storage.files import write_text
from mfm_jax.storage.locks import one_at_a_time
from mfm_jax.typing import Float
from miniature.claims import Budget, Plan, add_common, sizes
from miniature.document import Table
from miniature.measures import SCORES, EvalSet, Line, true_loa
from miniature.report import compare, print_tables, shown, summary
from miniature.runs import Run, Workspace, enable_compilation_cache, group_lines, run_all

PRECISIONS = ("float32", "bfloat16")
"""Precisions of extraction; the first one is the reference."""

LEARNING_RATE = 3e-3
"""What the claims chose for this mapper on the held-out clips."""

ENCODED = ("cavp", "timechat", "audiomae", "latents")
"""Fields of the features that a network computes."""


@dataclass(frozen=True)
class Clips:
    """The clips that features are extracted of."""

    train: list[Clip]
    test: list[Clip]

    @classmethod
    def make(cls, workdir: Path, train: int, test: int) -> "Clips":
        """Return the first clips of both kinds; those that are missing are made."""
        start = SPLITS["test"].start
        return cls(
            make_clips(World(), range(train), workdir / "clips"),
            make_clips(World(), range(start, start + test), workdir / "test_clips"),
        )


def features_in(workspace: Workspace, precision: str) -> Path:
    """Return the folder of the features in a precision, with the folders `train` and `heldout`.

    No setting is chosen here, so the clips that are held out are test clips.
    """
    return workspace.workdir / workspace.name / precision


def extract_all(workspace: Workspace, clips: Clips) -> None:
    """Extract the features of all clips in each precision, where they are missing.

    Raises:
        DataError: a folder holds something else, or no clip can be read.
    """
    bundle = Bundle.open(workspace.bundle)
    for precision in PRECISIONS:
        for name, its in (("train", clips.train), ("heldout", clips.test)):
            folder = features_in(workspace, precision) / name
            with one_at_a_time(folder):
                extract(bundle, its, folder, batch=16, precision=precision)


@dataclass(frozen=True)
class Difference:
    """The distance of features from the reference's, relative to these, over some clips."""

    rms: float  # over all clips
    largest: float  # RMS of a clip


def differences(
    reference: Sequence[Float[np.ndarray, "..."]], others: Sequence[Float[np.ndarray, "..."]]
) -> Difference:
    """Compare arrays clip by clip: the RMS of the difference over that of the reference."""
    pairs = [
        (np.mean((a.astype(np.float64) - b) ** 2), np.mean(b.astype(np.float64) ** 2))
        for a, b in zip(others, reference, strict=True)
    ]
    apart, size = np.array(pairs).T
    return Difference(
        float(np.sqrt(apart.mean() / size.mean())), float(np.sqrt((apart / size).max()))
    )


def compare_features(reference: Path, other: Path, network: MapperConfig) -> dict[str, Difference]:
    """Compare all fields of two folders of features, and the LOA that training predicts."""
    sources = [FeatureSource(folder) for folder in (reference, other)]
    fields = [name for name in ENCODED if name in sources[0].about["fields"]]
    found = {
        name: differences(*([source[i][name] for i in range(len(source))] for source in sources))
        for name in fields
    }
    found["LOA"] = differences(
        *(list(true_loa(folder, network.loa)) for folder in (reference, other))
    )
    return found


def plan_runs(workspace: Workspace, budget: Budget, clips: int) -> list[Run]:
    """Return a run for each precision and seed, and one of true LOA for each precision.

    All are scored against the reference's true LOA, in the reference's units.
    """
    plan = Plan(workspace, budget, clips)

    def run(precision: str, seed: int) -> Run:
        features = features_in(workspace, precision)
        videos = workspace.workdir / "test_clips"
        test = EvalSet(features / "heldout", videos, budget.sounds, budget.sampler_steps)
        config = plan.config(
            sizes(features / "train"), test, LEARNING_RATE, budget.steps, seed, clips
        )
        source = ClipFiles(str(features), limit=clips, licence="Apache-2.0")
        config = replace(config, recipe=replace(config.recipe, source=source))
        return Run("mapper", precision, config, test)

    runs = [run(precision, seed) for precision in PRECISIONS for seed in range(budget.seeds)]
    runs += [replace(run(name, 0), part="ceiling", true=True) for name in PRECISIONS]
    return [one if one.name == PRECISIONS[0] else replace(one, truth=runs[0]) for one in runs]


def report(
    features: dict[str, Difference], runs: Sequence[Run], lines: Sequence[Line]
) -> dict[str, Any]:
    """Return the contents of `precision.json`, without the command that made it."""
    found = group_lines(runs, lines)
    reference, other = PRECISIONS
    mappers = {name: found["mapper", name, 1.0] for name in PRECISIONS}
    gaps = compare(mappers[other], mappers[reference])
    for gap in gaps.values():
        gap["verdict"] = verdict(gap)
    scores = {
        **{f"mapper, {name}": summary(its) for name, its in mappers.items()},
        **{f"true LOA, {name}": summary(found["ceiling", name, 1.0]) for name in PRECISIONS},
    }
    seconds = sum(x["seconds"] for x in {x["key"]: x for x in lines}.values())
    return {
        "seconds": round(seconds, 1),
        "features": {name: asdict(its) for name, its in features.items()},
        "seeds": [line["seed"] for line in mappers[reference]],
        "scores": scores, "differences": gaps,
        "tables": tables(features, scores, gaps),
    }  # fmt: skip


def verdict(gap: dict[str, Any]) -> str:
    """Say whether no difference is within the interval of a difference."""
    return "within" if gap["low"] <= 0 <= gap["high"] else "outside"


def tables(
    features: dict[str, Difference], scores: dict[str, Any], gaps: dict[str, dict[str, Any]]
) -> list[Table]:
    """Return tables of the features' errors, of the scores, and of the differences."""
    reference, other = PRECISIONS
    names = list(gaps)
    return [
        {
            "title": f"Features in {other}, relative to those in {reference}",
            "columns": ["feature", "RMS of the difference", "largest of a clip"],
            "rows": [[name, f"{x.rms:.5f}", f"{x.largest:.5f}"] for name, x in features.items()],
        },
        {
            "title": "A mapper trained on each",
            "columns": ["LOA, features", *(SCORES[name].label for name in names)],
            "rows": [[name, *(shown(its[n]) for n in names)] for name, its in scores.items()],
        },
        {
            "title": f"Differences of the mappers, {other} minus {reference} [95 %]",
            "columns": ["score", "difference", "zero is"],
            "rows": [
                [
                    SCORES[name].label,
                    f"{gap['difference']:+.4f} [{gap['low']:+.4f}, {gap['high']:+.4f}]",
                    gap["verdict"],
                ]
                for name, gap in gaps.items()
            ],
        },
    ]


def add_precision(parser: argparse.ArgumentParser) -> None:
    """Add the options of `precision`."""
    add_common(parser)
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each precision")
    parser.add_argument("--clips", type=int, default=4096, help="training clips")
    parser.add_argument("--test", type=int, default=512, help="test clips that LOA is scored on")
    parser.set_defaults(run=run_precision)


def run_precision(args: argparse.Namespace) -> None:
    """Extract and train what is missing, then write the report."""
    workspace = Workspace(args.workdir, args.output / "precision.jsonl", "precision", args.bundle)
    enable_compilation_cache(str(args.workdir.absolute() / "cache"))
    extract_all(workspace, Clips.make(args.workdir, args.clips, args.test))
    budget = Budget(args.steps, args.seeds, args.batch, args.count, args.sampler_steps)
    runs = plan_runs(workspace, budget, args.clips)
    reference, other = (features_in(workspace, name) for name in PRECISIONS)
    features = compare_features(
        reference / "heldout", other / "heldout", sizes(reference / "train")
    )
    lines = run_all(runs, workspace, jobs=args.jobs)
    about: dict[str, Any] = {
        "command": args.command_line, "clips": args.clips, "steps": args.steps,
        "test": args.test, "sounds": args.count,
    }  # fmt: skip
    found = {**about, **report(features, runs, lines)}
    write_text(args.output / "precision.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
