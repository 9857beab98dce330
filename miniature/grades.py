"""Trains the miniature for a grade of the Foley world, and scores what was trained."""

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

from mfm_jax.bundle import Bundle
from mfm_jax.cli import arguments as options
from mfm_jax.cli import toplevel
from mfm_jax.errors import UsageError
from mfm_jax.foley.world import SPLITS, World, write_world
from mfm_jax.storage.paths import TINY_BUNDLE
from miniature.document import RESULTS
from miniature.scores import WAYS, open_clips, score, write_scores
from miniature.stages import (
    BASE,
    HARD,
    HARD_FAST,
    Stage,
    copy_sound_networks,
    pack,
    run_stages,
    write_report,
)


@dataclass(frozen=True)
class Grade:
    """The stages, folders and result names of one grade of the Foley world."""

    world: World
    stages: tuple[Stage, ...]
    workdir: Path
    bundle: Path  # the packed one, in float16
    clips: int  # test clips that are scored
    prefix: str  # of the names of results


GRADES = {
    "base": Grade(World(), BASE, Path("runs/tiny"), TINY_BUNDLE, 512, ""),
    "hard": Grade(World.hard(), HARD, Path("runs/hard"), Path("runs/hard/packed"), 128, "hard_"),
    "hard_fast": Grade(
        World.hard(),
        HARD_FAST,
        Path("runs/hard_fast"),
        Path("runs/hard_fast/packed"),
        128,
        "hard_fast_",
    ),
}


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the options of `train`."""
    parser.add_argument(
        "grade", nargs="?", choices=GRADES, default="base", help="grade of the world"
    )
    parser.add_argument(
        "--workdir", type=options.path, help="folder of the runs, which continue if it exists"
    )
    parser.add_argument(
        "--target", type=options.path, help="folder of the float16 bundle, which is replaced"
    )
    parser.add_argument("--jobs", type=int, default=2, help="networks trained at the same time")
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    """Train what is not trained yet, pack the bundle and write the report."""
    grade = GRADES[args.grade]
    target = args.target or grade.bundle
    if target == TINY_BUNDLE and not toplevel.in_checkout():
        raise UsageError("give --target DIR: the bundle of an installed package is not replaced")
    workdir = args.workdir or grade.workdir
    bundle = workdir / "bundle"
    if args.grade != "base":
        copy_sound_networks(TINY_BUNDLE, bundle)
    run_stages(workdir, grade.stages, jobs=args.jobs)
    pack(workdir / grade.stages[-1].name, target)
    write_report(workdir, grade.stages, RESULTS, grade.prefix, command=args.command_line)


def add_scores(parser: argparse.ArgumentParser) -> None:
    """Add the options of `scores`."""
    parser.add_argument(
        "grade", nargs="?", choices=GRADES, default="base", help="grade of the world"
    )
    parser.add_argument(
        "--bundle", type=options.path, help="default: the bundle that `train` packed"
    )
    parser.add_argument(
        "--clips", type=options.path, help="folder of clips, which are made if they are missing"
    )
    parser.add_argument("--count", type=int, help="number of clips")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="of making sound")
    parser.add_argument("--without-adapter", action="store_true", help="the UNet reads LOA alone")
    parser.add_argument("-o", "--output", type=options.path, help="JSON file of the scores")
    parser.set_defaults(run=run_scores)


def run_scores(args: argparse.Namespace) -> None:
    """Score the clips and write the table."""
    grade = GRADES[args.grade]
    bundle = args.bundle or grade.bundle
    Bundle.open(bundle)
    folder, count = args.clips or grade.workdir / "test_clips", args.count or grade.clips
    start = SPLITS["test"].start
    write_world(grade.world, range(start, start + count), folder, processes=os.cpu_count() or 1)
    start_time = time.monotonic()
    clips = open_clips(folder, count)
    rows = score(bundle, clips, ways=args.ways, adapter=not args.without_adapter)
    about = {"command": args.command_line, "clips": count, "seconds": time.monotonic() - start_time}
    write_scores(args.output or RESULTS / f"{grade.prefix}scores.json", rows, about)
    for row in rows:
        shown = {k: v for k, v in row.scores().items() if isinstance(v, float)}
        print(f"{row.way:10}", "  ".join(f"{k} {v:.3f}" for k, v in shown.items()), flush=True)
