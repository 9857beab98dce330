"""What the command does, once its options are read (`convert/__main__.py`)."""

import argparse
import shlex
from importlib import import_module
from pathlib import Path

from jax import numpy as jnp

from convert.incoming import Choices, to_bundle
from convert.model import Model, Request
from convert.outgoing import to_torch as write_torch
from convert.source import is_hub_source, read_json, resolve
from convert.table import ConversionError
from mfm_jax.bundle import Bundle
from mfm_jax.errors import one_line
from mfm_jax.runtime.progress import Progress
from mfm_jax.storage.copies import kept_copy
from mfm_jax.storage.files import check_file, check_folder
from mfm_jax.storage.paths import array_path

READING = (
    "precision", "excuse", "drop_unused", "ema", "only", "vocabulary", "config", "licence",
    "revision",
)  # fmt: skip
"""Options that say how checkpoints are read."""


def from_torch(args: argparse.Namespace) -> None:
    """Read checkpoints into a bundle.

    Raises:
        ConversionError: an option does not go with the model.
    """
    model = find_model(args.model)
    if args.only and args.model != "audioldm2":
        raise ConversionError(f"{args.model} is one network: leave out --only")
    check_folder(array_path(args.output))
    if (args.output / "bundle.json").exists():
        Bundle.open(args.output)
    if args.config is not None:
        args.config = kept_copy(args.config)
        read_json(args.config.parent, args.config.name)
    if args.vocabulary is not None:
        check_file(args.vocabulary)
        args.vocabulary = kept_copy(args.vocabulary)
    sources = tuple(
        resolve(source, patterns=model.patterns, revision=args.revision) for source in args.sources
    )
    request = Request(
        sources,
        args.licence,
        excuse=args.excuse,
        vocabulary=args.vocabulary,
        config=args.config,
        only=args.only,
        averaged=args.ema,
    )
    read = model.read(request)
    for note in request.notes:
        print(one_line(note))
    if args.ema and not request.notes:
        raise ConversionError("there are no averages (EMA) of the weights: leave out --ema")
    with Progress(None, "MB") as progress:
        choices = Choices(
            made_by=_command(args),
            dtype=None if args.precision is None else jnp.dtype(args.precision),
            excuse=args.excuse,
            keep=not args.drop_unused,
            progress=_Megabytes(progress),
        )
        bundle = to_bundle(args.output, read.parts, choices, read.schedule)
    for part in read.parts:
        parameters = bundle.entries[part.component].parameters
        print(f"{args.output}: {part.component}, {parameters:,} parameters")


def to_torch(args: argparse.Namespace) -> None:
    """Write components of a bundle in their original layout.

    Raises:
        ConversionError: several sources are given, or an option of reading checkpoints.
    """
    if len(args.sources) != 1:
        raise ConversionError("with --to torch give one bundle")
    if given := [f"--{name.replace('_', '-')}" for name in READING if getattr(args, name)]:
        raise ConversionError(
            f"with --to torch a bundle is written as it is: leave out {', '.join(given)}"
        )
    check_folder(args.output)
    bundle = Bundle.open(args.sources[0])
    parts = find_model(args.model).write(bundle)
    with Progress(None, "MB") as progress:
        write_torch(bundle, parts, args.output, _Megabytes(progress))
    print(f"{args.output}: {', '.join(part.component for part in parts)}")


def find_model(name: str) -> Model:
    """Return the `MODEL` of the module `name`."""
    return import_module(f"convert.{name}").MODEL


class _Megabytes:
    """Counts bytes as whole megabytes of progress."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.bytes = progress, 0

    def __call__(self, size: int) -> None:
        before = self.bytes // 1_000_000
        self.bytes += size
        if whole := self.bytes // 1_000_000 - before:
            self.progress.advance(whole)


def _command(args: argparse.Namespace) -> str:
    """Return the command as the bundle records it: with the names of files, without folders."""
    names = [source if is_hub_source(source) else Path(source).name for source in args.sources]
    options = [option for pattern in args.excuse for option in ("--excuse", pattern)]
    options += ["--precision", args.precision] if args.precision else []
    options += ["--drop-unused"] if args.drop_unused else []
    options += ["--ema"] if args.ema else []
    return shlex.join([*args.program.split(), args.model, *names, *options])
