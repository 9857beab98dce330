"""`mfm convert` or `python -m convert`: weights of PyTorch checkpoints into a bundle, and back.

python -m convert MODEL SOURCE... -o BUNDLE
python -m convert MODEL BUNDLE -o FOLDER --to torch

Exit codes: 0 done, 2 wrong usage or files that cannot be converted; nothing is written then.
"""

import argparse
import sys
from collections.abc import Sequence

from mfm_jax.cli import arguments as options
from mfm_jax.cli.command import run_parsed
from mfm_jax.runtime import signals

MODELS = {
    "cavp": "CAVP of Diff-Foley: cavp_epoch66.ckpt",
    "timechat": "TimeChat's vision: eva_vit_g.pth, the InstructBLIP file and timechat_7b.pth",
    "audiomae": "AudioMAE: pretrained.pth, or AudioLDM2's own checkpoint that holds it",
    "gpt2": "GPT-2, which a mapper starts from: gpt2, or AudioLDM2's language_model",
    "t5": "FLAN-T5's encoder, for prompts: flan-t5-large, or AudioLDM2's text_encoder_2",
    "audioldm2": "AudioLDM 2 in diffusers' folders: UNet, VAE, vocoder, scheduler, T5 and GPT-2",
    "cnn14": "PANNs' tagger, for metrics: Cnn14_16k_mAP=0.438.pth",
    "synchformer": "Synchformer, for DeSync: 24-01-04T16-39-21.pt or synchformer_state_dict.pth",
    "mapper": "a mapper that was exported from here",
    "adapter": "an adapter of the UNet that was exported from here",
}
"""What each model is read from. Its table and its `MODEL` are in the module of that name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = "Weights from PyTorch checkpoints into a bundle, or back."
    parser.epilog = "models:\n" + "\n".join(f"  {n:11} {about}" for n, about in MODELS.items())
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("model", choices=MODELS, metavar="MODEL", help="one of those below")
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="files, a folder or a Hugging Face repository, ORGANISATION/NAME or hf://...; with "
        "--to torch, a bundle",
    )
    parser.add_argument(
        "-o", "--output", required=True, type=options.path, help="a bundle, or a folder"
    )
    parser.add_argument("--to", choices=("jax", "torch"), default="jax", help="default: jax")
    options.add_precision(parser, "of the stored weights; default: that of the source")
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
        help="drop tensors that are not read; the way back then gives less than came in",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="take averages (EMA) of the weights where a source has them beside the weights",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="of audioldm2 (repeatable)"
    )
    parser.add_argument("--vocabulary", type=options.path, metavar="VOCAB_TXT", help="for timechat")
    parser.add_argument(
        "--config",
        type=options.path,
        metavar="CONFIG_JSON",
        help="sizes as exported from here, for a model whose files hold none",
    )
    parser.add_argument("--licence", help="of the weights, if it is not that of the release")
    parser.add_argument("--revision", help="of a Hugging Face repository")
    parser.set_defaults(run=run, program=parser.prog)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from convert.command import from_torch, to_torch

    (to_torch if args.to == "torch" else from_torch)(args)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command by itself, outside of `mfm`."""
    if arguments is None:
        signals.catch("python -m convert")
    parser = options.Parser(prog="python -m convert", allow_abbrev=False)
    add_arguments(parser)
    return run_parsed(parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
