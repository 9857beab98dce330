"""The paper's three claims as one experiment: who is compared, and what is run.

(a) Two encoders beat one. (b) GPT-2 beats a linear mapper. (c) With both it needs a small part of
the training that the earlier kind of mapper, linear and of CAVP alone, was given.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip, DataError
from mfm_jax.data.features import DESCRIPTION, extract
from mfm_jax.data.records import read_about
from mfm_jax.foley.clips import only_one
from mfm_jax.foley.world import SPLITS, World, write_world
from mfm_jax.mapper import MapperConfig
from mfm_jax.models.audiomae import LOA
from mfm_jax.storage.files import write_text
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe, tiny_mapper
from miniature.curves import draw, write_csv
from miniature.measures import Asked, Line
from miniature.report import OURS, claims_report, print_tables
from miniature.runs import Place, Run, Stage1, by_place, perform_all, remember_programs

SHARES = (0.04, 0.08, 0.16, 0.32, 1.0)
"""Of the training clips, and of the steps, in the curves of claim (c)."""
RATES = {"gpt2": (7e-4, 1.5e-3, 3e-3), "linear": (1e-3, 3e-3, 1e-2)}
"""Learning rates that are tried."""
LONGER = 3
"""Linear mappers are cheap: they are also tried with this many times the steps."""
TUNING_SEED = 100
"""No seed of the runs that are reported."""
ENCODERS = {
    "dual": ("cavp", "timechat"),
    "cavp": ("cavp",),
    "timechat": ("timechat",),
    "cavp twice": ("cavp", "cavp:2"),
    "timechat twice": ("timechat", "timechat:2"),
}
"""An encoder twice has as many tokens as two have, or about: the fair comparison of length."""


@dataclass(frozen=True)
class System:
    """A kind of mapper of some encoders."""

    name: str
    network: MapperConfig

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates that are tried."""
        return RATES[self.network.kind.partition("_")[0]]


@dataclass(frozen=True)
class Budget:
    """How much is run."""

    steps: int = 500  # of a full training
    seeds: int = 5
    batch: int = 32  # clips in a step
    count: int = 96  # clips whose sound is made
    sampler_steps: int = 10  # of it: half of the time of the bundle's 20


def sizes(features: Path) -> MapperConfig:
    """The default mapper between the encoders whose tokens are in a folder of features.

    Raises:
        DataError: there are none, or some encoder's are missing.
    """
    about = read_about(features / DESCRIPTION)
    if missing := [n for n in ("cavp", "timechat", "audiomae") if n not in about["fields"]]:
        raise DataError(f"{features} has no {', '.join(missing)}: extract it with all encoders")
    shapes = {name: tuple(shape) for name, (shape, _) in about["fields"].items()}
    return replace(
        tiny_mapper(),
        encoders=tuple((name, *shapes[name]) for name in ("cavp", "timechat")),
        loa_width=shapes["audiomae"][1],
        loa=LOA(grid=tuple(about["grid"]), pool=(1, about["grid"][1])),
        timechat=about["timechat"],
    )


def systems(network: MapperConfig) -> tuple[System, ...]:
    """All that are compared, of the sizes of `network`."""
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

    place: Place
    budget: Budget
    clips: int  # there are for training

    def config(
        self, network: MapperConfig, asked: Asked, rate: float, steps: int, seed: int, clips: int
    ) -> TrainConfig:
        """A training; the loss, the optimiser and the data are those of every other."""
        recipe = Stage1(
            bundle=str(self.place.bundle),
            clips=str(self.place.workdir / "clips"),
            features=str(self.place.features),
            train=clips,
            network=network,
            asked=str(asked.features),
        )
        return TrainConfig(
            recipe=recipe,
            optimizer=OptimizerConfig(rate=rate, warmup=30),
            steps=steps,
            batch=self.budget.batch,
            seed=seed,
            log=50,
            evaluate=max(steps, 1),
            keep=1,
        )

    def tuning(self, system: System, asked: Asked) -> list[Run]:
        """One seed of each rate and, for linear mappers, of each number of steps."""
        steps = self.budget.steps
        budgets = (steps,) if system.network.kind == "gpt2" else (steps, LONGER * steps)
        return [
            Run("tuning", system.name, self.config(
                system.network, asked, rate, number, TUNING_SEED, self.clips
            ), asked)
            for number in budgets
            for rate in system.rates
        ]  # fmt: skip

    def seeds(
        self, part: str, system: System, tuned: "Tuned", asked: Asked, share: float = 1.0
    ) -> list[Run]:
        """All seeds of a system; `part` says what there is a `share` of."""
        steps, clips = tuned.steps, self.clips
        if part == "steps":
            steps = max(1, round(share * steps))
        if part == "clips":
            clips = max(self.budget.batch, round(share * clips))
        floor = system.name == OURS and share == 1
        return [
            Run(part, system.name, self.config(
                system.network, asked, tuned.rate, steps, seed, clips
            ), asked, share, floor=floor)
            for seed in range(self.budget.seeds)
        ]  # fmt: skip


@dataclass(frozen=True)
class Tuned:
    """What the validation clips chose for a system."""

    rate: float
    steps: int


def tuned(lines: Sequence[Line]) -> Tuned:
    """The numbers of the line with the least mean LOA error."""
    best = min(lines, key=lambda line: float(np.mean(line["counts"]["loa_error"])))
    return Tuned(best["rate"], best["steps"])


def run_experiment(
    place: Place, budget: Budget, test: Asked, *, jobs: int
) -> tuple[list[Run], list[Line]]:
    """Tune on the held-out clips, then run everything that is reported on `test`."""
    network = sizes(place.features / "train")
    plan = Plan(place, budget, read_about(place.features / "train" / DESCRIPTION)["clips"])
    heldout = Asked(place.features / "heldout", place.workdir / "clips", 0)
    compared = systems(network)
    trials = {system.name: plan.tuning(system, heldout) for system in compared}
    lines = perform_all([run for runs in trials.values() for run in runs], place, jobs=jobs)
    tried = by_place([run for runs in trials.values() for run in runs], lines)
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
    return runs, perform_all(runs, place, jobs=jobs)


def prepare_features(place: Place) -> None:
    """The features of training and held-out clips, all at the world's own frame rate.

    The bundle's mapper is trained on videos of several rates. A linear mapper does not read when
    a token was, so the comparison would be about that.

    Raises:
        DataError: a folder holds the features of other clips or encoders.
    """
    clips, features = place.workdir / "clips", place.features
    recipe = MapperRecipe(bundle=str(place.bundle), clips=str(clips), features=str(features))
    recipe.prepare(place.workdir)


def prepare_test(place: Place, clips: int) -> Path:
    """The features of the first `clips` test clips; both are made where they are missing.

    Raises:
        DataError: the folder holds the features of other clips or encoders.
    """
    videos, folder = place.workdir / "test_clips", place.workdir / "claims" / "test"
    start = SPLITS["test"].start
    seeds = range(start, start + clips)
    with only_one(folder):
        write_world(World(), seeds, videos, processes=2)
        named = [Clip(str(seed), videos / f"{seed}.mp4") for seed in seeds]
        extract(Bundle.open(place.bundle), named, folder, batch=16)
    return folder


def add_claims(commands) -> None:
    """`claims`: the paper's three claims."""
    parser = commands.add_parser("claims", help="the paper's three claims, as one experiment")
    add_common(parser)
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each system")
    parser.add_argument("--test", type=int, default=512, help="test clips that LOA is scored on")
    parser.set_defaults(run=run_claims)


def add_common(parser: argparse.ArgumentParser) -> None:
    """What both experiments are told."""
    parser.add_argument("--bundle", type=Path, default=TINY_BUNDLE, help="of all other networks")
    parser.add_argument("--workdir", type=Path, default=Path("runs/tiny"), help="of what is made")
    parser.add_argument("--steps", type=int, default=500, help="of a full training")
    parser.add_argument("--batch", type=int, default=32, help="clips in a step")
    parser.add_argument("--count", type=int, default=96, help="clips whose sound is scored")
    parser.add_argument("--sampler-steps", type=int, default=10, help="of that sound")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a process each")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/miniature"), help="folder")


def run_claims(args: argparse.Namespace) -> None:
    """Run what is missing, and write the report and the curves."""
    place = Place(args.workdir, args.output / "claims.jsonl", "claims", args.bundle)
    remember_programs(str(args.workdir.absolute() / "cache"))
    budget = Budget(args.steps, args.seeds, args.batch, args.count, args.sampler_steps)
    prepare_features(place)
    videos = args.workdir / "test_clips"
    test = Asked(prepare_test(place, args.test), videos, args.count, args.sampler_steps)
    runs, lines = run_experiment(place, budget, test, jobs=args.jobs)
    about: dict[str, Any] = {"command": args.command, "clips": args.test, "heard": args.count}
    report = {**about, **claims_report(runs, lines)}
    write_text(args.output / "claims.json", json.dumps(report, indent=1) + "\n")
    write_csv(args.output / "curves.csv", runs, lines)
    draw(args.output / "curves.png", report["claims"]["c"])
    print_tables(report["tables"])
