"""`mfm train`, which is also the command line of `train.py`."""

import argparse
from collections.abc import Callable, Sequence

from mfm_jax.cli import arguments as options
from mfm_jax.cli import toplevel
from mfm_jax.cli.command import run_parsed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Train one network. A run that is started again in the same DIR goes on from its newest "
        "checkpoint."
    )
    options.add_config(
        parser, "a file, or the name of a shipped config such as tiny or base", required=True
    )
    parser.add_argument(
        "--workdir",
        type=options.array_folder,
        required=True,
        metavar="DIR",
        help="checkpoints and metrics",
    )
    parser.add_argument(
        "--profile",
        type=options.at_least_one,
        metavar="STEPS",
        help="trace so many steps, after the first ones",
    )
    options.add_processes(parser)
    options.add_programs(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace, train: Callable[..., int] | None = None) -> int:
    """Train with the function of `train.py`, which is imported if it is not given."""
    from mfm_jax.runtime import distributed
    from mfm_jax.train.goodput import process_start

    distributed.start(options.processes(args))
    config = toplevel.read_config(args.config, args.set)
    train = train or toplevel.module("train").train
    return train(
        config,
        args.workdir,
        args.command_line,
        profile=args.profile or 0,
        began=process_start(),
    )


def main(train: Callable[..., int], arguments: Sequence[str]) -> int:
    """Run `train.py` with `arguments`; `--config.a.b=v` is `--set a.b=v` there."""
    parser = options.Parser(prog="python train.py", allow_abbrev=False)
    add_arguments(parser)
    parser.set_defaults(run=lambda args: run(args, train))
    prefix = "--config."
    return run_parsed(
        parser,
        [
            f"--set={word.removeprefix(prefix)}" if word.startswith(prefix) else word
            for word in arguments
        ],
    )
