"""Options that several commands share, with one name and one meaning each."""

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from mfm_jax.errors import UserError, one_line
from mfm_jax.runtime.distributed import Processes
from mfm_jax.runtime.precision import PRECISIONS
from mfm_jax.storage.hub import is_of_hub
from mfm_jax.storage.paths import TINY_BUNDLE, PathError, array_path, local_path, user_path


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, as all others are."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: {one_line(message)} (see {self.prog} -h)\n")


class LazyParser(Parser):
    """A parser of a subcommand. `fill` adds its options, once the subcommand is chosen.

    So the modules of the other subcommands are not imported.
    """

    def __init__(
        self, *, fill: Callable[[argparse.ArgumentParser], None] | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.fill = fill

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Add the options and parse."""
        fill, self.fill = self.fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)


def add_bundle(parser: argparse.ArgumentParser) -> None:
    """Add `--bundle`."""
    parser.add_argument(
        "--bundle",
        type=bundle,
        default=TINY_BUNDLE,
        metavar="DIR",
        help="a folder, or hf://ORGANISATION/NAME[@REVISION]; default: the miniature",
    )


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Add `--no-verify`, of a bundle whose weights are loaded; `verify` in the namespace."""
    parser.add_argument(
        "--no-verify",
        dest="verify",
        action="store_false",
        help="do not compare the bundle's weights with their checksums when they are loaded",
    )


def add_precision(
    parser: argparse.ArgumentParser, about: str, *, default: str | None = None
) -> None:
    """Add `--precision`."""
    parser.add_argument("--precision", choices=PRECISIONS, default=default, help=about)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the settings of the sampler."""
    parser.add_argument("--steps", type=int, help="steps of the sampler; default: the bundle's")
    parser.add_argument("--sampler", help="ddim or dpm++; default: the bundle's")
    parser.add_argument("--eta", type=float, default=0.0, help="for ddim: 0 to 1")
    parser.add_argument("--guidance", type=float, help="1 is none; default: the bundle's")
    parser.add_argument(
        "--guidance-interval",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="guidance only at noise levels above LOW and up to HIGH, such as 0.3 3 (they go from "
        "0.04 to 84); steps outside take half the time",
    )
    parser.add_argument(
        "--guidance-rescale",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="0 to 1: how far guidance keeps the spread of the prediction; default: 0",
    )


def add_computing(parser: argparse.ArgumentParser) -> None:
    """Add the windows, the precision and the devices of generation."""
    parser.add_argument(
        "--batch",
        type=int,
        help="windows computed at once; default: 4, or all if they are fewer, rounded up to a "
        "multiple of the devices",
    )
    add_precision(parser, "of weights and arithmetic; default: float32", default="float32")
    group = parser.add_argument_group("several devices, over which the windows are divided")
    group.add_argument(
        "--fsdp", type=int, default=1, metavar="N", help="shard the weights over N of them, too"
    )
    group.add_argument(
        "--tensor", type=int, default=1, metavar="N", help="divide every layer over N of them"
    )


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of `add_sampling` and `add_computing`, as `generate` takes them."""
    names = (
        "steps", "sampler", "eta", "guidance", "guidance_interval", "guidance_rescale",
        "batch", "precision", "fsdp", "tensor",
    )  # fmt: skip
    return {name: getattr(args, name) for name in names}


def add_programs(parser: argparse.ArgumentParser) -> None:
    """Add `--no-program-cache`, of a command that compiles; `keep_programs` in the namespace."""
    parser.add_argument(
        "--no-program-cache",
        dest="keep_programs",
        action="store_false",
        help="keep no compiled programs for the next command, and use none",
    )


def add_config(parser: argparse.ArgumentParser, about: str, *, required: bool = False) -> None:
    """Add `--config` and `--set`, which `mfm_jax.cli.toplevel.read_config` reads."""
    parser.add_argument("--config", required=required, metavar="NAME_OR_FILE", help=about)
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="FIELD=VALUE",
        help="change fields of the config, such as mesh.fsdp=4 (repeatable)",
    )


class _Sandbox(argparse.Action):
    """Ask for the sandbox in this process and in those that it starts."""

    def __call__(self, *_: Any) -> None:
        from mfm_jax.media.sandbox import SWITCH

        os.environ[SWITCH] = "1"


def add_sandbox(parser: argparse.ArgumentParser) -> None:
    """Add `--sandbox`."""
    parser.add_argument(
        "--sandbox",
        action=_Sandbox,
        nargs=0,
        help="decode and write each video in a process with limited memory and time, for files of "
        "strangers",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Add the options that `processes` reads."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="find the other processes as a TPU pod, Slurm or Open MPI says; on a TPU pod run the "
        "same command on each host",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="address of process 0, with any free port"
    )
    group.add_argument("--processes", type=int, metavar="N", help="number of processes")
    group.add_argument("--process", type=int, metavar="I", help="number of this one, from 0")


def processes(args: argparse.Namespace) -> Processes:
    """Return how the processes of this command find each other."""
    return Processes(args.distributed, args.coordinator, args.processes, args.process)


def path(text: str, read: Callable[[str], Path] = user_path) -> Path:
    """Read a path, of this machine or in a store; a `type` of argparse."""
    try:
        return read(text)
    except PathError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path_here(text: str) -> Path:
    """Read a path of this machine; a `type` of argparse."""
    return path(text, local_path)


def array_folder(text: str) -> Path:
    """Read the path of a bundle, a run or features; a `type` of argparse."""
    return path(text, array_path)


def bundle(text: str) -> Path | str:
    """Read the name of a bundle to be opened; a `type` of argparse.

    The hub is not asked yet, so that a name there stays as it is.
    """
    try:
        return text if is_of_hub(text) else array_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def at_least_one(text: str) -> int:
    """Read a positive number; a `type` of argparse."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
