"""`mfm bundle`: what a bundle holds, and whether it still is what was written."""

import argparse
from collections import Counter
from pathlib import Path

from mfm_jax.bundle import Bundle


def add_parser(commands) -> None:
    """Add the subcommand with its own two."""
    parser = commands.add_parser(
        "bundle",
        help="show or verify a bundle",
        description="What a bundle holds, and whether it still is what was written.",
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, run, about in (
        ("show", show, "list the components: size, parameters, precision and origin"),
        ("verify", verify, "compare all files and weights with their checksums"),
    ):
        verb = verbs.add_parser(name, help=about, description=f"{about.capitalize()}.")
        verb.add_argument("bundle", type=Path, metavar="DIR")
        verb.set_defaults(run=run)


def show(args: argparse.Namespace) -> int:
    """Print one block of lines for each component."""
    bundle = Bundle.open(args.bundle)
    total = 0
    for name, entry in bundle.entries.items():
        store = bundle.store(name)
        total += store.size
        kinds = Counter(listed.dtype for listed in store.arrays.values())
        precision = " and ".join(kinds)
        print(f"{name:10} {_size(store.size):>9}  {entry.parameters:>13,} parameters  {precision}")
        print(f"{'':10} made by {entry.source.made_by} (mfm-jax {entry.source.version})")
        print(f"{'':10} licence {entry.source.licence}")
        for file, sha256 in entry.source.files:
            print(f"{'':10} from {file}  sha256 {sha256}")
    settings = bundle.settings
    print(
        f"windows of {settings.seconds} s, {settings.sampler} with {settings.steps} steps, "
        f"guidance {settings.guidance}, {settings.schedule.prediction} prediction; "
        f"{_size(total)} in all"
    )
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check every component; 1 where one is damaged, each fault named."""
    bundle = Bundle.open(args.bundle)
    failed = 0
    for name in bundle.entries:
        problems = bundle.damages(name)
        for problem in problems:
            print(f"{name}: {problem}")
        if not problems:
            print(f"{name}: as written")
        failed += bool(problems)
    return 1 if failed else 0


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
