"""`python -m miniature COMMAND`: train the miniature, score it, ask it the paper's questions."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mfm_jax.bundle import BundleError
from mfm_jax.data.clips import DataError
from mfm_jax.errors import MediaError, SettingError
from mfm_jax.foley.world import SPLITS, World, WorldError, write_world
from mfm_jax.runtime.memory import keep_freed_memory
from mfm_jax.storage.paths import TINY_BUNDLE
from mfm_jax.train.log import NonFinite
from miniature.claims import add_claims
from miniature.document import add_report
from miniature.real import add_real
from miniature.robust import add_robust
from miniature.scores import WAYS, open_clips, score, write_scores
from miniature.stages import (
    BASE,
    HARD,
    HARD_FAST,
    Stage,
    StageError,
    pack,
    run_stages,
    share_sound,
    write_report,
)
from miniature.still import add_still
from miniature.unknowns import add_unknowns

KNOWN = (
    BundleError, DataError, MediaError, NonFinite, SettingError, StageError, WorldError
)  # fmt: skip
RESULTS = Path("docs/miniature")


@dataclass(frozen=True)
class Grade:
    """Where the work on a grade of the world lies, and what its results are called."""

    world: World
    stages: tuple[Stage, ...]
    workdir: Path
    bundle: Path  # packed, in float16
    count: int  # test clips
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


def add_train(commands) -> None:
    """`train`: every network from nothing, one bundle."""
    parser = commands.add_parser("train", help="train every network and pack them as one bundle")
    parser.add_argument("grade", nargs="?", choices=GRADES, default="base", help="of the world")
    parser.add_argument("--workdir", type=Path, help="of the runs; where it is, they go on")
    parser.add_argument("--target", type=Path, help="of the float16 bundle, which is replaced")
    parser.add_argument("--jobs", type=int, default=2, help="networks trained at the same time")
    parser.set_defaults(run=run_train)


def run_train(args: argparse.Namespace) -> None:
    """Train what is not trained yet, pack, and report."""
    grade = GRADES[args.grade]
    workdir = args.workdir or grade.workdir
    bundle = workdir / "bundle"
    if args.grade != "base":
        share_sound(TINY_BUNDLE, bundle)
    run_stages(workdir, grade.stages, jobs=args.jobs)
    pack(workdir / grade.stages[-1].name, args.target or grade.bundle)
    write_report(workdir, grade.stages, RESULTS, grade.prefix, command=args.command)


def add_scores(commands) -> None:
    """`scores`: held-out clips through a bundle."""
    parser = commands.add_parser("scores", help="held-out clips through a bundle")
    parser.add_argument("grade", nargs="?", choices=GRADES, default="base", help="of the world")
    parser.add_argument("--bundle", type=Path, help="by default what `train` has packed")
    parser.add_argument("--clips", type=Path, help="folder; clips are made where they are missing")
    parser.add_argument("--count", type=int, help="clips")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("-o", "--output", type=Path, help="a JSON file")
    parser.set_defaults(run=run_scores)


def run_scores(args: argparse.Namespace) -> None:
    """Score and write the table."""
    grade = GRADES[args.grade]
    folder, count = args.clips or grade.workdir / "test_clips", args.count or grade.count
    start = SPLITS["test"].start
    write_world(grade.world, range(start, start + count), folder, processes=os.cpu_count() or 1)
    began = time.monotonic()
    rows = score(args.bundle or grade.bundle, open_clips(folder, count), ways=args.ways)
    about = {"command": args.command, "clips": count, "seconds": time.monotonic() - began}
    write_scores(args.output or RESULTS / f"{grade.prefix}scores.json", rows, about)
    for row in rows:
        shown = {k: v for k, v in row.scores().items() if isinstance(v, float)}
        print(f"{row.way:10}", "  ".join(f"{k} {v:.3f}" for k, v in shown.items()), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="python -m miniature", description=__doc__)
    commands = parser.add_subparsers(required=True)
    add_train(commands)
    add_scores(commands)
    add_claims(commands)
    add_unknowns(commands)
    add_robust(commands)
    add_still(commands)
    add_real(commands)
    add_report(commands)
    args = parser.parse_args(arguments)
    args.command = shlex.join(["python", "-m", "miniature", *arguments])
    keep_freed_memory()
    try:
        args.run(args)
    except KNOWN as error:
        print(f"miniature: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
