"""`mfm miniature` or `python -m miniature`: train, score and question the miniature."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from mfm_jax.cli.arguments import LazyParser, Parser, add_programs
from mfm_jax.cli.command import run_parsed
from mfm_jax.runtime import signals

COMMANDS = {
    "train": ("grades", "train every network and pack them as one bundle"),
    "scores": ("grades", "held-out clips through a bundle"),
    "claims": ("claims", "the paper's three claims, as one experiment"),
    "unknowns": ("unknowns", "what the paper leaves open, a change at a time"),
    "timing": ("timing", "routes to the right moment with a frozen UNet"),
    "streams": ("streams", "what a third stream of video adds on the hard grade"),
    "three": ("three", "the paper's claims with three encoders, for mappers on the hard grade"),
    "robust": ("robust", "the same clips at other rates, sizes, rotated"),
    "still": ("still", "black, static and noise videos"),
    "evaluate": ("evaluation", "real, VAE, generated and shuffled sounds by every score"),
    "desync": ("desync", "whether DeSync follows known shifts, by a Synchformer trained here"),
    "steps": ("steps", "few steps of the sampler beside many"),
    "seams": ("seams", "long clips where their windows meet"),
    "unwanted": ("unwanted", "guidance away from a sound"),
    "guidance": ("guidance", "guidance at some noise levels only, and rescaled"),
    "precision": ("precision", "features in bfloat16, and a mapper trained on them"),
    "real": ("real", "real clips, which it was not made for"),
    "report": ("document", "put all results into docs/miniature.md"),
    "figures": ("figures", "draw the figures of docs/miniature_report.md"),
}
"""For each command the module that has its `add_NAME`, and what it does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the commands, each of which adds its options once it is chosen."""
    parser.description = "Train the miniature, score it, and ask it the paper's questions."
    commands = parser.add_subparsers(
        dest="miniature", required=True, metavar="COMMAND", parser_class=LazyParser
    )
    for name, (module, about) in COMMANDS.items():
        commands.add_parser(
            name,
            help=about,
            description=f"{about[0].upper()}{about[1:]}.",
            fill=partial(_fill, name, module),
        )


def _fill(name: str, module: str, parser: argparse.ArgumentParser) -> None:
    getattr(import_module(f"miniature.{module}"), f"add_{name}")(parser)
    add_programs(parser)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command by itself, outside of `mfm`."""
    if arguments is None:
        signals.catch("python -m miniature")
    parser = Parser(prog="python -m miniature")
    add_arguments(parser)
    return run_parsed(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
