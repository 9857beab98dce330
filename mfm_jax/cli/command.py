"""The `mfm` command. Exit codes: 0 done, 1 some inputs failed, 2 wrong usage, 130 and 143 stopped.

Only the module of the command that is run is imported, and the libraries that it needs only once it
runs: `mfm -h` and `mfm COMMAND -h` answer at once.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from io import TextIOWrapper

from mfm_jax import __version__
from mfm_jax.cli import toplevel
from mfm_jax.cli.arguments import LazyParser, Parser
from mfm_jax.runtime import signals
from mfm_jax.runtime.command import run_command
from mfm_jax.runtime.programs import keep_programs

COMMANDS = {
    "generate": "make sound for videos",
    "serve": "a page and a REST API that make sound for videos",
    "extract": "compute the features that training reads",
    "train": "train one network",
    "status": "say how far runs are",
    "convert": "released weights into a bundle, or back to PyTorch",
    "bundle": "show or verify a bundle",
    "evaluate": "score generated sound against real sound, with a report",
    "demo": "sound for a silent example clip",
    "plan": "compile for TPUs that are not there, and say what a step needs",
    "miniature": "train the miniature, score it, ask it the paper's questions",
}
TOPLEVEL = ("convert", "miniature")
"""Commands whose modules lie outside the package."""


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of `mfm`; each command adds its options once it is chosen."""
    parser = Parser(prog="mfm", description="Sound for silent video.")
    parser.add_argument("--version", action="version", version=f"mfm-jax {__version__}")
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=LazyParser
    )
    for name, about in COMMANDS.items():
        commands.add_parser(name, help=about, allow_abbrev=False, fill=partial(_fill, name))
    return parser


def _fill(name: str, parser: argparse.ArgumentParser) -> None:
    if name in TOPLEVEL:
        toplevel.module(f"{name}.__main__").add_arguments(parser)
    else:
        import_module(f"mfm_jax.cli.{name}").add_arguments(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return run_parsed(build_parser(), arguments)


def run_parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run the command that it names, and return the exit code.

    The parser sets `run`, which gets the parsed arguments and returns the exit code, or None for 0.
    Among the arguments is `command_line`, the whole command, for the record in what it makes.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A file may have any name, whatever the terminal can show.
            stream.reconfigure(errors="backslashreplace")
    args = parser.parse_args(arguments)
    args.command_line = shlex.join([*parser.prog.split(), *arguments])
    name = " ".join(filter(None, (parser.prog, getattr(args, "command", None))))
    signals.rename(name)
    if getattr(args, "keep_programs", False):
        keep_programs()
    return run_command(name, lambda: args.run(args) or 0)
