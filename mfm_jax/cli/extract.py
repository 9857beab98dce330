"""`mfm extract`: clips in, the features that training reads out."""

import argparse
from pathlib import Path

from mfm_jax.cli import UsageError
from mfm_jax.cli.progress import Progress
from mfm_jax.paths import TINY_BUNDLE


def add_parser(commands) -> None:
    """Add the subcommand and its options."""
    parser = commands.add_parser(
        "extract",
        help="compute the features that training reads",
        description="Compute the features that training reads, once for each clip with sound.",
    )
    parser.add_argument(
        "clips",
        type=Path,
        metavar="CSV_OR_DIR",
        help="a folder of videos, a CSV with a column 'file', or VGGSound's own CSV",
    )
    parser.add_argument(
        "--videos", type=Path, metavar="DIR", help="where a CSV's videos lie; default: beside it"
    )
    parser.add_argument("--split", help="only the clips of this split of a CSV")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FEATURES")
    parser.add_argument("--bundle", type=Path, default=TINY_BUNDLE, help="default: the miniature")
    parser.add_argument("--batch", type=int, default=8, help="clips computed at once")
    parser.add_argument(
        "--timechat",
        choices=("frame", "video", "llama"),
        default="video",
        help="which of TimeChat's tokens",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Extract; 1 where some clips failed, each named."""
    from mfm_jax.bundle import Bundle
    from mfm_jax.data.clips import DataError, list_clips
    from mfm_jax.data.features import extract

    if args.batch < 1:
        raise UsageError(f"--batch must be at least 1, got {args.batch}")
    try:
        clips = list_clips(args.clips, videos=args.videos, split=args.split)
        bundle = Bundle.open(args.bundle)
        progress = Progress(len(clips), "clips")
        try:
            failed = extract(
                bundle,
                clips,
                args.output,
                batch=args.batch,
                timechat=args.timechat,
                progress=progress.advance,
            )
        finally:
            progress.close()
    except DataError as error:
        raise UsageError(str(error)) from None
    for failure in failed:
        progress.say(f"mfm extract: {failure.id}: {failure.reason}")
    progress.say(f"{args.output}: features of {len(clips) - len(failed)} of {len(clips)} clips")
    return 1 if failed else 0
