"""`mfm extract`: compute the features of clips that training reads."""

import argparse

from mfm_jax.cli import arguments as options
from mfm_jax.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = "Compute the features that training reads, once for each clip with sound."
    parser.add_argument(
        "clips",
        type=options.path,
        metavar="CSV_OR_DIR",
        help="a folder of videos, a CSV with a column 'file', or VGGSound's own CSV",
    )
    parser.add_argument(
        "--videos",
        type=options.path,
        metavar="DIR",
        help="folder of a CSV's videos; default: beside it",
    )
    parser.add_argument("--split", help="only the clips of this split of a CSV")
    parser.add_argument(
        "-o", "--output", required=True, type=options.array_folder, metavar="FEATURES"
    )
    options.add_bundle(parser)
    options.add_verify(parser)
    options.add_sandbox(parser)
    parser.add_argument("--batch", type=int, default=8, help="clips computed at once; default: 8")
    parser.add_argument(
        "--encoders",
        nargs="+",
        metavar="NAME",
        help="the networks to run, such as cavp and audiomae; default: all that the bundle has. "
        "One without weights of its own, motion or moving, must be named",
    )
    parser.add_argument(
        "--timechat",
        choices=("frame", "video", "llama"),
        default="video",
        help="which tokens of TimeChat; default: video",
    )
    parser.add_argument(
        "--windows",
        choices=("first", "all"),
        default="first",
        help="of a clip that is longer than one; default: first",
    )
    options.add_precision(parser, "of weights and arithmetic; default: float32", default="float32")
    parser.add_argument(
        "--drop",
        nargs="+",
        choices=("silent", "static"),
        default=(),
        help="leave out clips without sound to hear or without motion to see, too",
    )
    parser.add_argument(
        "--shard",
        type=int,
        metavar="CLIPS",
        help="clips in one file; an interruption loses at most one file; default: 256",
    )
    parser.add_argument(
        "--licence",
        default="",
        metavar="SPDX",
        help="licence of the clips, such as CC-BY-4.0: what is trained on them is bound by it",
    )
    options.add_processes(parser)
    options.add_programs(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Extract; return 1 where some clips failed, each named."""
    from mfm_jax.bundle import Bundle
    from mfm_jax.data.clips import list_clips
    from mfm_jax.data.decoded import every_window
    from mfm_jax.data.features import DESCRIPTION
    from mfm_jax.encoders import window_spec
    from mfm_jax.inference.extract import extract
    from mfm_jax.runtime import distributed
    from mfm_jax.runtime.progress import Progress
    from mfm_jax.runtime.throughput import Throughput

    for name, value in (("batch", args.batch), ("shard", args.shard)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    share = distributed.share(options.processes(args))
    clips = list_clips(args.clips, videos=args.videos, split=args.split)
    bundle = Bundle.open(args.bundle, verify=args.verify)
    if args.windows == "all":
        clips = every_window(clips, window_spec(bundle, {}))
    throughput = Throughput(len(clips))
    with Progress(len(clips), "clips") as progress:
        progress.watch(len(clips), throughput)
        failed = extract(
            bundle,
            clips,
            args.output,
            batch=args.batch,
            encoders=args.encoders,
            timechat=args.timechat,
            precision=args.precision,
            drop=args.drop,
            licence=args.licence,
            share=share,
            shard=args.shard,
            progress=progress.advance,
            say=progress.say,
            throughput=throughput,
        )
    for failure in failed:
        progress.say(f"mfm extract: {failure.id}: {failure.reason}")
    if not (args.output / DESCRIPTION).exists():
        progress.say(f"{args.output}: this part is done, others are left to other processes")
    else:
        good = len(clips) - len(failed)
        progress.say(f"{args.output}: features of {good} of {len(clips)} clips")
    return 1 if failed else 0
