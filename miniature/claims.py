"""The paper's three claims as one experiment: the systems that are compared, and their runs.

(a) Two encoders beat one. (b) GPT-2 beats a linear mapper. (c) GPT-2 with two encoders needs a
small share of the training that the earlier mapper, a linear one of CAVP alone, was given.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.bundle import Bundle
from mfm_jax.cli import arguments as options
from mfm_jax.data.clips import Clip, DataError
from mfm_jax.data.features import DESCRIPTION
from mfm_jax.data.records import read_about
from mfm_jax.data.sources import ClipFiles
from mfm_jax.foley.clips import FoleyClips
from mfm_jax.foley.world import SPLITS, World, write_world
from mfm_jax.inference.extract import extract
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.audiomae import LOA
from mfm_jax.storage.files import write_text
from mfm_jax.storage.locks import one_at_a_time
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from miniature.curves import draw, write_csv
from miniature.measures import EvalSet, Line
from miniature.report import OURS, claims_report, print_tables
from miniature.runs import (
    Run,
    Stage1,
    Workspace,
    enable_compilation_cache,
    group_lines,
    run_all,
    training_config,
)

SHARES = (0.04, 0.08, 0.16, 0.32, 1.0)
"""Shares of the training clips, and of the steps, in the curves of claim (c)."""
LEARNING_RATES = {"gpt2": (7e-4, 1.5e-3, 3e-3), "linear": (1e-3, 3e-3, 1e-2)}
"""Learning rates that are tried, by the kind of mapper."""
LINEAR_STEPS_FACTOR = 3
"""Linear mappers are cheap, so they are also tried with this many times the steps."""
TUNING_SEED = 100
"""Seed of the tuning runs; no reported run has it."""
ENCODERS = {
    "dual": ("cavp", "timechat"),
    "cavp": ("cavp",),
    "timechat": ("timechat",),
    "cavp twice": ("cavp", "cavp:2"),
    "timechat twice": ("timechat", "timechat:2"),
}
"""Encoders by the name that tables show.

One encoder given twice has about as many tokens as two encoders, so the prefixes are as long.
"""


@dataclass(frozen=True)
class System:
    """A kind of mapper and the encoders that it reads."""

    name: str
    network: MapperConfig

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Learning rates that are tried."""
        return LEARNING_RATES[self.network.kind.partition("_")[0]]


@dataclass(frozen=True)
class Budget:
    """The size of an experiment."""

    steps: int = 500  # of a full training
    seeds: int = 5
    batch: int = 32  # clips in a step
    sounds: int = 96  # clips whose sound is generated and scored
    sampler_steps: int = 10  # of DPM-Solver++; more do not score better


def sizes(features: Path) -> MapperConfig:
    """Return the default mapper, with its sizes taken from a folder of features.

    Raises:
        DataError: there are no features, or those of an encoder are missing.
    """
    about = read_about(features / DESCRIPTION)
    if missing := [n for n in ("cavp", "timechat", "audiomae") if n not in about["fields"]]:
        raise DataError(f"{features} has no {', '.join(missing)}: extract it with all encoders")
    shapes = {name: tuple(shape) for name, (shape, _) in about["fields"].items()}
    return replace(
        MapperConfig.tiny(),
        encoders=tuple((name, *shapes[name]) for name in ("cavp", "timechat")),
        loa_width=shapes["audiomae"][1],
        loa=LOA(grid=tuple(about["grid"]), pool=(1, about["grid"][1])),
        timechat=about["timechat"],
    )


def systems(network: MapperConfig) -> tuple[System, ...]:
    """Return the systems that are compared, with the sizes of `network`."""
    shapes = {name: (tokens, width) for name, tokens, width in network.encoders}

    def system(encoders: str, kind: str) -> System:
        read = tuple((name, *shapes[name.partition(":")[0]]) for name in ENCODERS[encoders])
        return System(f"{encoders}, {kind}", replace(network, encoders=read, kind=kind))

    alone = ("dual", "cavp", "timechat")
    return (
        *(system(encoders, "gpt2") for encoders in ENCODERS),
        *(
            system(encoders, kind)
            for kind in ("linear_pooled", "linear_flat")
            for encoders in alone
        ),
    )


@dataclass(frozen=True)
class Plan:
    """Turns systems into runs that differ in nothing else."""

    workspace: Workspace
    budget: Budget
    clips: int  # all training clips

    def config(
        self,
        network: MapperConfig,
        eval_set: EvalSet,
        rate: float,
        steps: int,
        seed: int,
        clips: int,
    ) -> TrainConfig:
        """Return the config of a training; loss, optimizer and data are the same for all."""
        recipe = Stage1(
            bundle=str(self.workspace.bundle),
            source=features_of(self.workspace, clips),
            network=network,
            eval_features=str(eval_set.features),
        )
        optimizer = OptimizerConfig(learning_rate=rate, warmup_steps=30)
        return training_config(recipe, optimizer, steps=steps, batch=self.budget.batch, seed=seed)

    def tuning(self, system: System, eval_set: EvalSet) -> list[Run]:
        """Return a run for each learning rate and, for linear mappers, each number of steps."""
        steps = self.budget.steps
        budgets = (
            (steps,) if system.network.kind == "gpt2" else (steps, LINEAR_STEPS_FACTOR * steps)
        )
        return [
            Run("tuning", system.name, self.config(
                system.network, eval_set, rate, number, TUNING_SEED, self.clips
            ), eval_set)
            for number in budgets
            for rate in system.learning_rates
        ]  # fmt: skip

    def seeds(
        self, part: str, system: System, tuned: "Tuned", eval_set: EvalSet, share: float = 1.0
    ) -> list[Run]:
        """Return a run for each seed of a system, with a `share` of what `part` names."""
        steps, clips = tuned.steps, self.clips
        if part == "steps":
            steps = max(1, round(share * steps))
        if part == "clips":
            clips = max(self.budget.batch, round(share * clips))
        floor = system.name == OURS and share == 1
        return [
            Run(part, system.name, self.config(
                system.network, eval_set, tuned.learning_rate, steps, seed, clips
            ), eval_set, share, floor=floor)
            for seed in range(self.budget.seeds)
        ]  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """The settings of a system that were best on the held-out clips."""

    learning_rate: float
    steps: int


def tuned(lines: Sequence[Line]) -> Tuned:
    """Return the settings of the line with the lowest mean LOA error."""
    best = min(lines, key=lambda line: float(np.mean(line["counts"]["loa_error"])))
    return Tuned(best["learning_rate"], best["steps"])


def run_experiment(
    workspace: Workspace, budget: Budget, test: EvalSet, *, jobs: int
) -> tuple[list[Run], list[Line]]:
    """Tune on the held-out clips, then run everything that is reported, on `test`."""
    network = sizes(workspace.features / "train")
    plan = Plan(workspace, budget, read_about(workspace.features / "train" / DESCRIPTION)["clips"])
    heldout = EvalSet(workspace.features / "heldout", workspace.workdir / "clips", 0)
    compared = systems(network)
    trials = {system.name: plan.tuning(system, heldout) for system in compared}
    lines = run_all([run for runs in trials.values() for run in runs], workspace, jobs=jobs)
    tried = group_lines([run for runs in trials.values() for run in runs], lines)
    chosen = {name: tuned(tried["tuning", name, 1.0]) for name in trials}

    runs: list[Run] = []
    for system in compared:
        runs += plan.seeds("systems", system, chosen[system.name], test)
    ours = compared[0]
    for part in ("clips", "steps"):
        for share in SHARES:
            runs += plan.seeds(part, ours, chosen[OURS], test, share)
    config = plan.config(network, test, 0.0, 0, 0, plan.clips)
    runs.append(Run("ceiling", "true LOA", config, test, true=True))
    return runs, run_all(runs, workspace, jobs=jobs)


def features_of(workspace: Workspace, clips: int) -> ClipFiles:
    """Return the features of the first `clips` training clips, and of all held-out clips."""
    return ClipFiles(str(workspace.features), limit=clips, licence="Apache-2.0")


def prepare_features(workspace: Workspace) -> None:
    """Extract the features of training and held-out clips that are missing.

    All clips have the world's own frame rate. The bundle's mapper is trained on several frame
    rates, but a linear mapper does not see the times of its tokens, so with several rates the
    comparison would be about the times.

    Raises:
        DataError: a folder holds the features of other clips or encoders.
    """
    source = FoleyClips(str(workspace.workdir))
    MapperRecipe(bundle=str(workspace.bundle), source=source).prepare(workspace.workdir)


def prepare_test(workspace: Workspace, clips: int) -> Path:
    """Make the first `clips` test clips and extract their features; return the features' folder.

    Raises:
        DataError: the folder holds the features of other clips or encoders.
    """
    videos, folder = workspace.workdir / "test_clips", workspace.workdir / "claims" / "test"
    start = SPLITS["test"].start
    seeds = range(start, start + clips)
    with one_at_a_time(folder):
        write_world(World(), seeds, videos, processes=2)
        named = [Clip(str(seed), videos / f"{seed}.mp4") for seed in seeds]
        extract(Bundle.open(workspace.bundle), named, folder, batch=16)
    return folder


def add_claims(parser: argparse.ArgumentParser) -> None:
    """Add the options of `claims`."""
    add_common(parser)
    parser.add_argument("--seeds", type=int, default=5, help="training runs of each system")
    parser.add_argument("--test", type=int, default=512, help="test clips that LOA is scored on")
    parser.set_defaults(run=run_claims)


def add_common(parser: argparse.ArgumentParser) -> None:
    """Add the options that both experiments have."""
    parser.add_argument(
        "--bundle",
        type=options.path,
        default=TINY_BUNDLE,
        help="bundle of all networks but the mappers",
    )
    parser.add_argument(
        "--workdir",
        type=options.path,
        default=Path("runs/tiny"),
        help="folder of clips, features and runs",
    )
    parser.add_argument("--steps", type=int, default=500, help="steps of a full training")
    parser.add_argument("--batch", type=int, default=32, help="clips in a step")
    parser.add_argument("--count", type=int, default=96, help="clips whose sound is scored")
    parser.add_argument("--sampler-steps", type=int, default=10, help="sampler steps of that sound")
    add_running(parser)


def add_running(parser: argparse.ArgumentParser) -> None:
    """Add the options of every experiment: how many runs at a time, and where results go."""
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument(
        "-o",
        "--output",
        type=options.path,
        default=Path("docs/miniature"),
        help="folder of results",
    )


def run_claims(args: argparse.Namespace) -> None:
    """Run what is missing, then write the report and the curves."""
    workspace = Workspace(args.workdir, args.output / "claims.jsonl", "claims", args.bundle)
    enable_compilation_cache(str(args.workdir.absolute() / "cache"))
    budget = Budget(args.steps, args.seeds, args.batch, args.count, args.sampler_steps)
    prepare_features(workspace)
    videos = args.workdir / "test_clips"
    test = EvalSet(prepare_test(workspace, args.test), videos, args.count, args.sampler_steps)
    runs, lines = run_experiment(workspace, budget, test, jobs=args.jobs)
    about: dict[str, Any] = {"command": args.command_line, "clips": args.test, "sounds": args.count}
    report = {**about, **claims_report(runs, lines)}
    write_text(args.output / "claims.json", json.dumps(report, indent=1) + "\n")
    write_csv(args.output / "curves.csv", runs, lines)
    draw(args.output / "curves.png", report["claims"]["c"])
    print_tables(report["tables"])
