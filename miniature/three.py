"""The paper's claims with three encoders, for mappers on the hard grade.

Encoders, clips and LOA are those of `streams`: CAVP at 4 frames a second, TimeChat and Synchformer,
and AudioLDM2's grid. A mapper is scored by the error of the LOA that it predicts for the windows of
test videos. An adapter reads the video itself, so that its sound would say little about a mapper.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mfm_jax.cli import arguments as options
from mfm_jax.data.features import DESCRIPTION
from mfm_jax.data.records import read_about
from mfm_jax.mapper import MapperConfig
from mfm_jax.storage.files import write_text
from miniature.claims import Budget, Plan, System, Tuned, add_running, tuned
from miniature.measures import SCORES, EvalSet, Line
from miniature.report import compare, gap_table, print_tables, shown, summary
from miniature.routes import COARSE
from miniature.runs import Run, Workspace, enable_compilation_cache, group_lines, run_all
from miniature.study import MAPPER_RATE, POSITIONS, Study
from miniature.study import Budget as StreamsBudget

THREE = ("cavp", "timechat", "synchformer")
LINEAR = ("linear_pooled", "linear_flat")
SHARE, PARTS = 0.16, ("clips", "steps")
"""The share of the training in claim (c), and of what it is one."""
OURS = "three encoders, gpt2"
SETS = {
    "three encoders": THREE,
    "cavp and timechat": THREE[:2],
    "cavp": THREE[:1],
    "timechat": THREE[1:2],
    "synchformer": THREE[2:],
}
"""Encoders by the name that tables show."""
CLAIMS = (
    *(("a", OURS, f"{name}, gpt2") for name in SETS if name != "three encoders"),
    *(("b", OURS, f"three encoders, {kind}") for kind in LINEAR),
    *(("c", f"{OURS}, {SHARE:.0%} of the {part}", f"cavp, {kind}")
      for part in PARTS for kind in LINEAR),
)  # fmt: skip
"""(claim, ours, theirs): several encoders beat fewer, GPT-2 a linear mapper, and a share of the
training is enough to beat the earlier mapper, a linear one of CAVP alone."""


def systems(
    encoders: Callable[[Sequence[str]], tuple[tuple[str, int, int], ...]],
) -> tuple[System, ...]:
    """Return the systems that are compared; they differ in their encoders and kinds alone.

    Args:
        encoders: returns the tokens and the widths of encoders, as a mapper's config lists them.
    """
    tiny = MapperConfig.tiny()
    network = replace(tiny, loa=COARSE, gpt2=replace(tiny.gpt2, positions=POSITIONS))
    pairs = [(name, "gpt2") for name in SETS]
    pairs += [(name, kind) for name in ("three encoders", "cavp") for kind in LINEAR]
    return tuple(
        System(f"{name}, {kind}", replace(network, encoders=encoders(SETS[name]), kind=kind))
        for name, kind in pairs
    )


def run_experiment(
    study: Study, workspace: Workspace, budget: Budget, *, jobs: int
) -> dict[str, list[Line]]:
    """Return the lines of each system, after training and scoring those that are missing.

    Linear mappers get the best of several settings, by the held-out windows; GPT-2 is not tuned.
    """
    videos, features = study.test_videos, study.features
    test = EvalSet(study.test_features, videos, sounds=0)
    heldout = EvalSet(features / "heldout", videos, sounds=0)
    plan = Plan(workspace, budget, read_about(features / "train" / DESCRIPTION)["clips"])
    compared = systems(study.tokens)
    linear = [system for system in compared if system.network.kind != "gpt2"]
    trials = [run for system in linear for run in plan.tuning(system, heldout)]
    tried = group_lines(trials, run_all(trials, workspace, jobs=jobs))
    ours = Tuned(MAPPER_RATE, budget.steps)
    runs: list[Run] = []
    for system in compared:
        lines = tried.get(("tuning", system.name, 1.0))
        runs += plan.seeds("systems", system, tuned(lines) if lines else ours, test)
    for part in PARTS:
        runs += plan.seeds(part, compared[0], ours, test, SHARE)
    found = group_lines(runs, run_all(runs, workspace, jobs=jobs))
    return {shown_name(*key): lines for key, lines in found.items()}


def shown_name(part: str, name: str, share: float) -> str:
    """Return a system as tables show it, with the share of what its training has."""
    return name if part == "systems" else f"{name}, {share:.0%} of the {part}"


def report(lines: Mapping[str, Sequence[Line]]) -> dict[str, Any]:
    """Return the contents of `three.json`, without the command that made it."""
    rows = {name: summary(its) for name, its in lines.items()}
    gaps = {
        f"({claim}) {ours} minus {theirs}": compare(lines[ours], lines[theirs])
        for claim, ours, theirs in CLAIMS
    }
    names = list(next(iter(rows.values())))
    head = ["encoders, mapper", "parameters", "learning rate", "steps", "clips"]
    about = {
        name: [its[0][n] for n in ("parameters", "learning_rate", "steps", "clips")]
        for name, its in lines.items()
    }
    table = {
        "title": "Mappers on the hard grade",
        "columns": [*head, *(SCORES[n].label for n in names)],
        "rows": [
            [name, *about[name], *(shown(row[n]) for n in names)] for name, row in rows.items()
        ],
    }
    tables = [table, gap_table("The claims [95 %]", "comparison", names, gaps)]
    return {"rows": rows, "claims": gaps, "tables": tables}


def add_three(parser: argparse.ArgumentParser) -> None:
    """Add the options of `three`."""
    parser.add_argument("--seeds", type=int, default=3, help="training runs of each system")
    parser.add_argument("--steps", type=int, default=1000, help="steps of a full training")
    parser.add_argument(
        "--workdir",
        type=options.path,
        default=Path("runs"),
        help="folder of what streams has trained (streams)",
    )
    add_running(parser)
    parser.set_defaults(run=run_three)


def run_three(args: argparse.Namespace) -> None:
    """Run what is missing, then write the report."""
    enable_compilation_cache(str((args.workdir / "tiny" / "cache").absolute()))
    study = Study(args.workdir / "streams", StreamsBudget())
    study.prepare(args.jobs)
    workspace = Workspace(study.workdir, args.output / "three.jsonl", "three", study.start)
    budget = Budget(args.steps, args.seeds, sounds=0)
    lines = run_experiment(study, workspace, budget, jobs=args.jobs)
    found = {"command": args.command_line, **report(lines)}
    write_text(args.output / "three.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
