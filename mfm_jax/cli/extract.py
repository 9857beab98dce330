"""`mfm extract`: clips in, the features that training reads out."""

import argparse
from pathlib import Path

from mfm_jax.errors import UsageError
from mfm_jax.runtime import distributed
from mfm_jax.runtime.progress import Progress
from mfm_jax.storage.paths import TINY_BUNDLE


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
        help="clips in one file, which is what an interruption can cost; default: 256",
    )
    distributed.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Extract; 1 where some clips failed, each named."""
    from mfm_jax.bundle import Bundle
    from mfm_jax.data.clips import DataError, list_clips
    from mfm_jax.data.features import DESCRIPTION, extract
    from mfm_jax.errors import SettingError

    for name, value in (("batch", args.batch), ("shard", args.shard)):
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, got {value}")
    try:
        share = distributed.share(args)
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
                drop=args.drop,
                share=share,
                shard=args.shard,
                progress=progress.advance,
            )
        finally:
            progress.close()
    except (DataError, SettingError) as error:
        raise UsageError(str(error)) from None
    for failure in failed:
        progress.say(f"mfm extract: {failure.id}: {failure.reason}")
    if not (args.output / DESCRIPTION).exists():
        progress.say(f"{args.output}: this part is done, others are left to other processes")
    else:
        good = len(clips) - len(failed)
        progress.say(f"{args.output}: features of {good} of {len(clips)} clips")
    return 1 if failed else 0
