"""Tries choices that the paper leaves open, one change at a time, on the held-out clips."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import DESCRIPTION, FeatureSource
from mfm_jax.data.records import read_about
from mfm_jax.data.sources import ClipFiles
from mfm_jax.inference.extract import extract
from mfm_jax.models.audiomae import LOA
from mfm_jax.storage.files import write_text
from mfm_jax.storage.locks import one_at_a_time
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.stage2 import ONLY_MAPPER
from miniature.claims import Budget, Plan, add_common, features_of, prepare_features, sizes
from miniature.measures import SCORES, EvalSet, Line
from miniature.report import Table, compare, print_tables, shown, shown_gap, summary
from miniature.runs import (
    Run,
    Stage2,
    Workspace,
    enable_compilation_cache,
    group_lines,
    run_all,
)

DEFAULT, LONGER = "default", "stage 1 for longer"
LEARNING_RATE, STAGE2_LEARNING_RATE = 1.5e-3, 3e-4
STAGE2_STEPS = 0.8
"""Steps of stage 2 as a share of those of stage 1; `LONGER` has as many additional steps."""
POOLS = ((8, 8), (4, 4), (2, 2))
"""Pools of LOA that are tried besides the default, (1, 8)."""
NO_FRAMES = "TimeChat frame tokens, which have not been extracted: add --frame"
RECIPES: dict[str, dict[str, Any]] = {
    "error l1": {"error": "l1"},
    "contrast_weight 0": {"contrast_weight": 0.0},
    "cosine_weight 0.5": {"cosine_weight": 0.5},
    "scheduled_sampling 0": {"scheduled_sampling": 0.0},
    "noise_std 0.6": {"noise_std": 0.6},
    "token_dropout 0.3": {"token_dropout": 0.3},
}
"""Changes of the loss and of the input of GPT-2, by name: fields of `MapperRecipe`."""
NETWORKS: dict[str, dict[str, Any]] = {
    "fusion channels": {"fusion": "channels"},
    "fusion wrapped, no time embedding": {"fusion": "wrapped"},
    "no head, LOA not standardised": {"head": False},
}
"""Changes of the network, by name: fields of `MapperConfig`."""


@dataclass(frozen=True)
class Change:
    """A training that differs from another one in a single choice."""

    name: str
    config: TrainConfig
    eval_set: EvalSet
    against: str = DEFAULT  # name of the change that it is compared with
    init_from: "Change | None" = None  # stage 1 that a stage 2 starts from

    @property
    def loa(self) -> LOA:
        """The grid that is predicted."""
        return self.run(0).loa

    def run(self, seed: int) -> Run:
        """Return the run of a seed; a stage 2 starts from the stage 1 of the same seed."""
        base = None if self.init_from is None else self.init_from.run(seed)
        config = replace(self.config, seed=seed)
        return Run("changes", self.name, config, self.eval_set, init_from=base)


def changes(plan: Plan) -> list[Change]:
    """Return the default, then all changes that the extracted features allow."""
    features = plan.workspace.features
    budget = plan.budget
    videos = plan.workspace.workdir / "clips"
    eval_set = EvalSet(features / "heldout", videos, budget.sounds, budget.sampler_steps)
    network = sizes(features / "train")

    def trained(network, **changed: Any) -> TrainConfig:
        config = plan.config(network, eval_set, LEARNING_RATE, plan.budget.steps, 0, plan.clips)
        return replace(config, recipe=replace(config.recipe, **changed))

    found = [Change(DEFAULT, trained(network), eval_set)]
    for name, changed in NETWORKS.items():
        found.append(Change(name, trained(replace(network, **changed)), eval_set))
    for pool in POOLS:
        loa = LOA(network.loa.grid, pool, network.loa.patch_seconds)
        found.append(Change(f"LOA pool {pool}", trained(replace(network, loa=loa)), eval_set))
    found += [Change(name, trained(network, **its), eval_set) for name, its in RECIPES.items()]
    if has_frame_tokens(plan.workspace):
        frames = frame_features(plan.workspace)
        config = trained(
            sizes(frames / "train"),
            source=ClipFiles(str(frames), limit=plan.clips, licence="Apache-2.0"),
            eval_features=str(frames / "heldout"),
        )
        with_frames = replace(eval_set, features=frames / "heldout")
        found.append(Change("TimeChat frame tokens", config, with_frames))
    steps = plan.budget.steps
    more = round(STAGE2_STEPS * steps)
    longer = replace(found[0].config, steps=steps + more, eval_every=steps + more)
    return [
        *found,
        Change(LONGER, longer, eval_set),
        Change("stage 2", second_stage(plan, eval_set, more), eval_set, LONGER, found[0]),
    ]


def second_stage(plan: Plan, eval_set: EvalSet, steps: int) -> TrainConfig:
    """Return the config of a stage 2 without its bundle, which depends on the seed."""
    recipe = Stage2(
        source=features_of(plan.workspace, plan.clips),
        eval_features=str(eval_set.features),
    )
    return TrainConfig(
        recipe=recipe,
        optimizer=OptimizerConfig(
            learning_rate=STAGE2_LEARNING_RATE, warmup_steps=30, lr_multipliers=ONLY_MAPPER
        ),
        steps=steps,
        batch=max(1, plan.budget.batch // 2),  # a step also holds the activations of the UNet
        log_every=50,
        eval_every=max(steps, 1),
        keep=1,
    )


def ceilings(tried: Sequence[Change]) -> list[Run]:
    """Return a run that scores true LOA for each grid."""
    first: dict[LOA, Change] = {}
    for change in tried:
        first.setdefault(change.loa, change)
    return [
        Run("ceiling", f"true LOA, pool {loa.pool}", its.config, its.eval_set, true=True)
        for loa, its in first.items()
    ]


def frame_features(workspace: Workspace) -> Path:
    """Return the folder of the features with TimeChat's frame tokens."""
    return workspace.workdir / "claims" / "frame"


def has_frame_tokens(workspace: Workspace) -> bool:
    """Return True if the features with frame tokens have been extracted."""
    parts = (frame_features(workspace) / part / DESCRIPTION for part in ("train", "heldout"))
    return all(part.exists() for part in parts)


def extract_frame_tokens(workspace: Workspace) -> None:
    """Extract features with frame tokens, of the clips whose other features exist.

    Raises:
        DataError: a folder holds something else, or no clip can be read.
    """
    bundle = Bundle.open(workspace.bundle)
    for part in ("train", "heldout"):
        source, folder = FeatureSource(workspace.features / part), frame_features(workspace) / part
        names = [source.id_of(i) for i in range(len(source))]
        clips = [Clip(name, workspace.workdir / "clips" / f"{name}.mp4") for name in names]
        with one_at_a_time(folder):
            extract(bundle, clips, folder, batch=16, timechat="frame")


def report(tried: Sequence[Change], runs: Sequence[Run], lines: Sequence[Line]) -> dict[str, Any]:
    """Return the contents of `unknowns.json`, without the command that made it."""
    found = group_lines(runs, lines)
    by_name = {change.name: found["changes", change.name, 1.0] for change in tried}
    loa = {change.name: change.loa for change in tried}
    rows = []
    for change in tried:
        its = by_name[change.name]
        row: dict[str, Any] = {
            "change": change.name,
            "parameters": its[0]["parameters"],
            "seeds": [line["seed"] for line in its],
            "scores": summary(its),
        }
        if change.name != DEFAULT:
            gaps = compare(its, by_name[change.against])
            for gap in gaps.values():
                del gap["verdict"]  # the paper claims nothing here
            if loa[change.name] != loa[change.against]:
                del gaps["loa_error"]  # other targets in other units
            row |= {"against": change.against, "differences": gaps}
        rows.append(row)
    bounds = {name: summary(its) for (part, name, _), its in found.items() if part == "ceiling"}
    seconds = sum(x["seconds"] for x in {x["key"]: x for x in lines}.values())
    return {
        "seconds": round(seconds, 1), "rows": rows, "ceilings": bounds,
        "tables": tables(rows, bounds),
    }  # fmt: skip


def tables(rows: Sequence[dict[str, Any]], bounds: dict[str, Any]) -> list[Table]:
    """Return tables of the scores, and of the differences from what each is compared with."""
    names = list(rows[0]["scores"])
    labels = [SCORES[name].label for name in names]
    scores: list[list[Any]] = [
        [row["change"], row["parameters"], *(shown(row["scores"][n]) for n in names)]
        for row in rows
    ]
    scores += [[name, "", *(shown(its[n]) for n in names)] for name, its in bounds.items()]
    gaps = [
        [row["change"], row["against"]]
        + [
            shown_gap(row["differences"][n]) if n in row["differences"] else "other targets"
            for n in names
        ]
        for row in rows
        if "against" in row
    ]
    return [
        {"title": "One change at a time", "columns": ["change", "parameters", *labels],
         "rows": scores},
        {"title": "Differences [95 %]", "columns": ["change", "against", *labels], "rows": gaps},
    ]  # fmt: skip


def add_unknowns(parser: argparse.ArgumentParser) -> None:
    """Add the options of `unknowns`."""
    add_common(parser)
    parser.add_argument("--seeds", type=int, default=2, help="training runs of each change")
    parser.add_argument(
        "--frame", action="store_true", help="extract TimeChat's frame tokens first (minutes)"
    )
    parser.set_defaults(run=run_unknowns)


def run_unknowns(args: argparse.Namespace) -> None:
    """Run what is missing, then write the report."""
    workspace = Workspace(args.workdir, args.output / "unknowns.jsonl", "unknowns", args.bundle)
    enable_compilation_cache(str(args.workdir.absolute() / "cache"))
    prepare_features(workspace)
    if args.frame:
        extract_frame_tokens(workspace)
    clips = read_about(workspace.features / "train" / DESCRIPTION)["clips"]
    budget = Budget(args.steps, args.seeds, args.batch, args.count, args.sampler_steps)
    tried = changes(Plan(workspace, budget, clips))
    runs = [change.run(seed) for change in tried for seed in range(args.seeds)]
    runs += ceilings(tried)
    lines = run_all(runs, workspace, jobs=args.jobs)
    about: dict[str, Any] = {"command": args.command_line, "sounds": args.count}
    about["skipped"] = [] if has_frame_tokens(workspace) else [NO_FRAMES]
    found = {**about, **report(tried, runs, lines)}
    write_text(args.output / "unknowns.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
    for note in found["skipped"]:
        print(f"skipped: {note}", flush=True)
