"""What the paper does not say, tried one change at a time on the validation clips."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import Clip
from mfm_jax.data.features import DESCRIPTION, FeatureSource, extract
from mfm_jax.data.records import read_about
from mfm_jax.foley.clips import only_one
from mfm_jax.models.audiomae import LOA
from mfm_jax.storage.files import write_text
from mfm_jax.train.optimizer import OptimizerConfig
from mfm_jax.train.recipe import TrainConfig
from mfm_jax.train.recipes.mapper import MapperRecipe
from mfm_jax.train.recipes.stage2 import ONLY_MAPPER
from miniature.claims import Budget, Plan, add_common, prepare_features, sizes
from miniature.measures import SCORES, Asked, Line
from miniature.report import Table, compare, print_tables, shown, shown_gap, summary
from miniature.runs import (
    Place,
    Run,
    Stage2,
    by_place,
    perform_all,
    remember_programs,
    train_once,
)

DEFAULT, LONGER = "default", "stage 1 for longer"
RATE, STAGE_2_RATE = 1.5e-3, 3e-4
STAGE_2_STEPS = 0.8
"""Of the second stage, as a share of those of the first; `LONGER` has them as well."""
POOLS = ((8, 8), (4, 4), (2, 2))
"""Besides the default, (1, 8)."""
NO_FRAMES = "TimeChat frame tokens, which no features have: add --frame to extract them"
RECIPES: dict[str, dict[str, Any]] = {
    "error l1": {"error": "l1"},
    "contrast 0": {"contrast": 0.0},
    "cosine 0.5": {"cosine": 0.5},
    "own 0": {"own": 0.0},
    "noise 0.6": {"noise": 0.6},
    "blank 0.3": {"blank": 0.3},
}
"""Changes of the loss and of what is fed, by name; fields of `MapperRecipe`."""
NETWORKS: dict[str, dict[str, Any]] = {
    "fusion channels": {"fusion": "channels"},
    "fusion wrapped, no clock": {"fusion": "wrapped"},
    "no head, LOA as it is": {"head": False},
}
"""Changes of the network; fields of `MapperConfig`."""


@dataclass(frozen=True)
class Change:
    """One thing done in another way, and what it is compared with."""

    name: str
    config: TrainConfig
    asked: Asked
    against: str = DEFAULT
    begins: "Change | None" = None  # a second stage goes on from the mapper that this one leaves

    @property
    def loa(self) -> LOA:
        """The grid that is predicted."""
        config = (self.begins or self).config
        return config.recipe.mapper.loa  # type: ignore[attr-defined]

    def run(self, place: Place, seed: int) -> Run:
        """The run of a seed; what a second stage goes on from is trained now if it is missing.

        Raises:
            Stopped: a signal came.
        """
        recipe: Any = self.config.recipe
        if self.begins is not None:
            bundle = leave_bundle(self.begins.run(place, seed), place)
            recipe = replace(recipe, bundle=str(bundle))
        config = replace(self.config, recipe=recipe, seed=seed)
        return Run("changes", self.name, config, self.asked)


def changes(plan: Plan) -> list[Change]:
    """The default first, then all that can be tried with the features that are there."""
    features = plan.place.features
    budget = plan.budget
    videos = plan.place.workdir / "clips"
    asked = Asked(features / "heldout", videos, budget.count, budget.sampler_steps)
    network = sizes(features / "train")

    def trained(network, **changed: Any) -> TrainConfig:
        config = plan.config(network, asked, RATE, plan.budget.steps, 0, plan.clips)
        return replace(config, recipe=replace(config.recipe, **changed))

    found = [Change(DEFAULT, trained(network), asked)]
    for name, changed in NETWORKS.items():
        found.append(Change(name, trained(replace(network, **changed)), asked))
    for pool in POOLS:
        loa = LOA(network.loa.grid, pool, network.loa.patch_seconds)
        found.append(Change(f"LOA pool {pool}", trained(replace(network, loa=loa)), asked))
    found += [Change(name, trained(network, **its), asked) for name, its in RECIPES.items()]
    if has_frames(plan.place):
        frames = frame_folder(plan.place)
        config = trained(
            sizes(frames / "train"), features=str(frames), asked=str(frames / "heldout")
        )
        seen = replace(asked, features=frames / "heldout")
        found.append(Change("TimeChat frame tokens", config, seen))
    steps = plan.budget.steps
    more = round(STAGE_2_STEPS * steps)
    longer = replace(found[0].config, steps=steps + more, evaluate=steps + more)
    return [
        *found,
        Change(LONGER, longer, asked),
        Change("stage 2", second_stage(plan, asked, more), asked, LONGER, begins=found[0]),
    ]


def second_stage(plan: Plan, asked: Asked, steps: int) -> TrainConfig:
    """From the mapper on that its `bundle` has, which is for each seed to say."""
    recipe = Stage2(
        clips=str(plan.place.workdir / "clips"),
        features=str(plan.place.features),
        train=plan.clips,
        asked=str(asked.features),
    )
    return TrainConfig(
        recipe=recipe,
        optimizer=OptimizerConfig(rate=STAGE_2_RATE, warmup=30, rates=ONLY_MAPPER),
        steps=steps,
        batch=max(1, plan.budget.batch // 2),  # its step holds the UNet's gradients as well
        log=50,
        evaluate=max(steps, 1),
        keep=1,
    )


def leave_bundle(run: Run, place: Place) -> Path:
    """A bundle with the mapper that a run of stage 1 trains, trained unless it has been.

    Raises:
        Stopped: a signal came; the same call goes on from there.
    """
    recipe: Any = run.config.recipe
    numbers = {field.name: getattr(recipe, field.name) for field in fields(MapperRecipe)}
    folder = place.workdir / place.name / "stage1" / run.training()[:16]
    train_once(replace(run.config, recipe=MapperRecipe(**numbers)), folder, "bundle.json")
    return folder


def ceilings(tried: Sequence[Change]) -> list[Run]:
    """The true LOA of each grid."""
    first: dict[LOA, Change] = {}
    for change in tried:
        first.setdefault(change.loa, change)
    return [
        Run("ceiling", f"true LOA, pool {loa.pool}", its.config, its.asked, true=True)
        for loa, its in first.items()
    ]


def frame_folder(place: Place) -> Path:
    """Where the features with TimeChat's frame tokens lie."""
    return place.workdir / "claims" / "frame"


def has_frames(place: Place) -> bool:
    """Whether they are there."""
    parts = (frame_folder(place) / part / DESCRIPTION for part in ("train", "heldout"))
    return all(part.exists() for part in parts)


def extract_frames(place: Place) -> None:
    """Extract them, of the clips whose other features are there.

    Raises:
        DataError: a folder holds something else, or no clip can be read.
    """
    bundle = Bundle.open(place.bundle)
    for part in ("train", "heldout"):
        source, folder = FeatureSource(place.features / part), frame_folder(place) / part
        names = [source.id_of(i) for i in range(len(source))]
        clips = [Clip(name, place.workdir / "clips" / f"{name}.mp4") for name in names]
        with only_one(folder):
            extract(bundle, clips, folder, batch=16, timechat="frame")


def report(tried: Sequence[Change], runs: Sequence[Run], lines: Sequence[Line]) -> dict[str, Any]:
    """All of `unknowns.json` but what it was made from."""
    found = by_place(runs, lines)
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
                del gap["verdict"]  # nothing was claimed
            if loa[change.name] != loa[change.against]:
                del gaps["loa_error"]  # of other targets, in other units
            row |= {"against": change.against, "differences": gaps}
        rows.append(row)
    ends = {name: summary(its) for (part, name, _), its in found.items() if part == "ceiling"}
    seconds = sum(x["seconds"] for x in {x["key"]: x for x in lines}.values())
    return {
        "seconds": round(seconds, 1), "rows": rows, "ceilings": ends,
        "tables": tables(rows, ends),
    }  # fmt: skip


def tables(rows: Sequence[dict[str, Any]], ends: dict[str, Any]) -> list[Table]:
    """The scores, and the differences to what each change is compared with."""
    names = list(rows[0]["scores"])
    labels = [SCORES[name].label for name in names]
    scores: list[list[Any]] = [
        [row["change"], row["parameters"], *(shown(row["scores"][n]) for n in names)]
        for row in rows
    ]
    scores += [[name, "", *(shown(its[n]) for n in names)] for name, its in ends.items()]
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


def add_unknowns(commands) -> None:
    """`unknowns`: what the paper leaves open."""
    parser = commands.add_parser("unknowns", help="what the paper leaves open, a change at a time")
    add_common(parser)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each change")
    parser.add_argument(
        "--frame", action="store_true", help="extract TimeChat's frame tokens first, in minutes"
    )
    parser.set_defaults(run=run_unknowns)


def run_unknowns(args: argparse.Namespace) -> None:
    """Run what is missing, and write the report."""
    place = Place(args.workdir, args.output / "unknowns.jsonl", "unknowns", args.bundle)
    remember_programs(str(args.workdir.absolute() / "cache"))
    prepare_features(place)
    if args.frame:
        extract_frames(place)
    clips = read_about(place.features / "train" / DESCRIPTION)["clips"]
    budget = Budget(args.steps, args.seeds, args.batch, args.count, args.sampler_steps)
    tried = changes(Plan(place, budget, clips))
    runs = [change.run(place, seed) for change in tried for seed in range(args.seeds)]
    runs += ceilings(tried)
    lines = perform_all(runs, place, jobs=args.jobs)
    about: dict[str, Any] = {"command": args.command, "heard": args.count}
    about["skipped"] = [] if has_frames(place) else [NO_FRAMES]
    found = {**about, **report(tried, runs, lines)}
    write_text(args.output / "unknowns.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
    for note in found["skipped"]:
        print(f"not run: {note}", flush=True)
