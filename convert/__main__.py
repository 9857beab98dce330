"""`python -m convert`: released weights into a bundle, and a bundle's weights back to PyTorch.

python -m convert MODEL SOURCE... -o BUNDLE
python -m convert MODEL BUNDLE -o FOLDER --to torch

Exit codes: 0 done, 2 wrong usage or files that cannot be converted; nothing is written then.
"""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp

from convert import audioldm2, audiomae, cavp, cnn14, gpt2, mapper, t5, timechat
from convert.incoming import Choices, to_bundle
from convert.model import Model, Request
from convert.outgoing import to_torch
from convert.source import resolve
from convert.table import ConversionError
from convert.tensors import SourceError
from mfm_jax.bundle import Bundle, BundleError
from mfm_jax.runtime.progress import Progress
from mfm_jax.storage.store import StoreError

MODELS: dict[str, Model] = {
    "cavp": cavp.MODEL,
    "timechat": timechat.MODEL,
    "audiomae": audiomae.MODEL,
    "gpt2": gpt2.MODEL,
    "t5": t5.MODEL,
    "audioldm2": audioldm2.MODEL,
    "cnn14": cnn14.MODEL,
    "mapper": mapper.MODEL,
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16, "float16": jnp.float16}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description="Weights from PyTorch checkpoints into a bundle, or back.",
        epilog="models:\n" + "\n".join(f"  {n:10} {m.about}" for n, m in MODELS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help="one of those below")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="files, a folder or a Hugging Face repository; with --to torch, a bundle",
    )
    parser.add_argument("-o", "--output", required=True, type=Path, help="a bundle, or a folder")
    parser.add_argument("--to", choices=("jax", "torch"), default="jax", help="default: jax")
    parser.add_argument("--dtype", choices=DTYPES, help="of the stored weights; as in the source")
    parser.add_argument(
        "--excuse",
        action="append",
        default=[],
        metavar="PATTERN",
        help="tensors that may be missing, unknown, misshaped, doubled or not finite (repeatable)",
    )
    parser.add_argument(
        "--drop-unused",
        action="store_true",
        help="keep no tensors that are not read; the way back then gives less than came in",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="of audioldm2 (repeatable)"
    )
    parser.add_argument("--vocabulary", type=Path, metavar="VOCAB_TXT", help="for timechat")
    parser.add_argument(
        "--config",
        type=Path,
        metavar="CONFIG_JSON",
        help="as exported from here, for sizes other than the released of a model without one",
    )
    parser.add_argument("--licence", help="of the weights, where it is another than the released")
    parser.add_argument("--revision", help="of a Hugging Face repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert and return the exit code."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it opens
    args = build_parser().parse_args(arguments)
    progress = Progress(None, "MB")
    try:
        (_back if args.to == "torch" else _into)(args, _Megabytes(progress))
    except (ConversionError, SourceError, BundleError, StoreError, FileExistsError) as error:
        progress.close()
        print(f"convert {args.model}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        progress.close()
        print(f"convert {args.model}: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        progress.close()
        print(f"convert {args.model}: stopped, nothing was written", file=sys.stderr)
        return 130
    progress.close()
    return 0


class _Megabytes:
    """Turns bytes into progress by whole megabytes."""

    def __init__(self, progress: Progress) -> None:
        self.progress, self.bytes = progress, 0

    def __call__(self, size: int) -> None:
        before = self.bytes // 1_000_000
        self.bytes += size
        if whole := self.bytes // 1_000_000 - before:
            self.progress.advance(whole)


def _into(args: argparse.Namespace, progress: _Megabytes) -> None:
    model = MODELS[args.model]
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
    )
    read = model.read(request)
    choices = Choices(
        made_by=_command(args),
        dtype=DTYPES.get(args.dtype),
        excuse=args.excuse,
        keep=not args.drop_unused,
        progress=progress,
    )
    bundle = to_bundle(args.output, read.parts, choices, read.schedule)
    for part in read.parts:
        parameters = bundle.entries[part.component].parameters
        print(f"{args.output}: {part.component}, {parameters:,} parameters")


def _command(args: argparse.Namespace) -> str:
    """The command as it is written into the bundle, with the names of files but not their place."""
    names = [Path(source).name if Path(source).exists() else source for source in args.sources]
    options = [option for pattern in args.excuse for option in ("--excuse", pattern)]
    options += ["--dtype", args.dtype] if args.dtype else []
    options += ["--drop-unused"] if args.drop_unused else []
    return shlex.join(["python", "-m", "convert", args.model, *names, *options])


def _back(args: argparse.Namespace, progress: _Megabytes) -> None:
    if len(args.sources) != 1:
        raise ConversionError("with --to torch give one bundle")
    bundle = Bundle.open(Path(args.sources[0]))
    parts = MODELS[args.model].write(bundle)
    to_torch(bundle, parts, args.output, progress)
    print(f"{args.output}: {', '.join(part.component for part in parts)}")


if __name__ == "__main__":
    sys.exit(main())
