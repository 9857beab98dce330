"""The `mfm` command. Exit codes: 0 done, 1 some inputs failed, 2 wrong usage.

An error that a user can cause is one line that says what to do, without a traceback.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

from mfm_jax.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mfm` with every subcommand."""
    from mfm_jax import __version__
    from mfm_jax.cli import bundle, demo, extract, generate, plan

    parser = argparse.ArgumentParser(prog="mfm", description="Sound for silent video.")
    parser.add_argument("--version", action="version", version=f"mfm-jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (generate, extract, bundle, demo, plan):
        module.add_parser(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it opens
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    args = build_parser().parse_args(arguments)
    from mfm_jax.runtime.memory import keep_freed_memory

    keep_freed_memory()
    try:
        return args.run(args)
    except UserError as error:
        print(f"mfm {args.command}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"mfm {args.command}: stopped", file=sys.stderr)
        return 130
