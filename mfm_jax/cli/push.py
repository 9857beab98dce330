"""`mfm bundle push`: publish a bundle in a repository of the Hugging Face hub."""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mfm_jax.cli import arguments as options
from mfm_jax.storage.hub import MAIN, Address, is_hub_id

if TYPE_CHECKING:
    from mfm_jax.bundle import Bundle
    from mfm_jax.bundle.card import Scores

CARD, BUNDLE, EXPORTS = "README.md", "bundle.json", "torch"


def add_arguments(verbs: Any) -> None:
    """Add the verb and its options."""
    about = "write a bundle into a repository of the Hugging Face hub, with a card and exports"
    verb = verbs.add_parser("push", help=about, description=f"{about[0].upper()}{about[1:]}.")
    verb.add_argument("bundle", type=options.bundle, metavar="DIR")
    verb.add_argument("repository", type=repository, metavar="ORGANISATION/NAME")
    verb.add_argument(
        "--revision", default=MAIN, metavar="BRANCH", help="made if need be; default: main"
    )
    verb.add_argument("--private", action="store_true", help="a repository that only you see")
    verb.add_argument(
        "--report",
        type=options.path,
        metavar="REPORT",
        help="a folder of mfm evaluate, whose scores come into the card",
    )
    verb.add_argument(
        "--into",
        type=options.path_here,
        metavar="FOLDER",
        help="write all files into this new folder, and nothing to the hub",
    )
    verb.set_defaults(run=run)


def repository(text: str) -> str:
    """Read the name of a repository; a `type` of argparse."""
    name = text.removeprefix("hf://")
    if not is_hub_id(name):
        raise argparse.ArgumentTypeError(f"{text} is no repository: give ORGANISATION/NAME")
    return name


def run(args: argparse.Namespace) -> int:
    """Write the files, and send them unless they were asked for in a folder."""
    from mfm_jax.bundle import COMPONENTS, Bundle
    from mfm_jax.storage.hub import upload

    bundle = Bundle.open(args.bundle)
    address = Address(args.repository, None if args.revision == MAIN else args.revision)
    with _target(args.into) as folder:
        write_repository(bundle, folder, address, args.report)
        if args.into is None:
            # Folders of components that the bundle has no longer, and exports of those.
            stale = rf"(({'|'.join(COMPONENTS)})-[0-9a-f]{{8}}|{EXPORTS})/"
            told = upload(
                folder,
                address,
                private=args.private,
                last=(BUNDLE, CARD),
                stale=stale,
            )
    print(args.into if args.into is not None else told)
    return 0


@contextmanager
def _target(into: Path | None) -> Iterator[Path]:
    """Yield the folder to be filled: one that stays, or one that goes afterwards.

    Raises:
        UsageError: it is there and not empty.
    """
    from mfm_jax.errors import UsageError
    from mfm_jax.storage.files import check_folder, new_folder
    from mfm_jax.storage.scratch import scratch

    if into is None:
        with scratch("repository") as folder:
            yield folder
        return
    check_folder(into)
    if into.exists() and any(into.iterdir()):
        raise UsageError(f"{into} is there and not empty: name another folder with --into")
    with new_folder(into) as folder:
        yield folder


def write_repository(bundle: "Bundle", folder: Path, address: Address, report: Path | None) -> None:
    """Write what the repository of a bundle holds: the bundle, its card, and exports.

    Raises:
        BundleError: a component is damaged.
        UsageError: the report cannot be read.
    """
    from mfm_jax.bundle import BundleError
    from mfm_jax.bundle.card import card
    from mfm_jax.bundle.write import copy_tree
    from mfm_jax.cli import toplevel
    from mfm_jax.errors import one_line
    from mfm_jax.storage.files import write_text

    scores = [*_trained(bundle), *([] if report is None else [_evaluated(report)])]
    for component, entry in bundle.entries.items():
        if problems := bundle.damages(component):
            raise BundleError(
                f"{component} is damaged ({problems[0]}): make it again, then publish"
            )
        copy_tree(bundle.folder(component), folder / entry.folder)
    exports = toplevel.module("convert.export").export(bundle, folder / EXPORTS)
    for component, why in exports.refused.items():
        print(one_line(f"{component} is not exported: {why}"))
    (folder / BUNDLE).write_bytes((bundle.path / BUNDLE).read_bytes())
    write_text(folder / CARD, card(bundle, address, exports, scores))


def _trained(bundle: "Bundle") -> Iterator["Scores"]:
    """Yield the held-out score of the training run whose folder is the bundle."""
    from mfm_jax.bundle.card import Scores
    from mfm_jax.storage.index import StoreError, read_json

    try:
        found = read_json(bundle.path / "summary.json").get("heldout")
        rows = [[when, str(found[when]["step"]), f"{found[when]['value']:.4g}"] for when in WHEN]
        yield Scores(f"Training, held-out {found['metric']}:", ("", "step", "value"), rows)
    except (StoreError, AttributeError, LookupError, TypeError, ValueError):
        return  # no run was here, or it had no held-out clips


WHEN = ("best", "last")


def _evaluated(report: Path) -> "Scores":
    """Return the main scores of `mfm evaluate`.

    Raises:
        UsageError: the folder holds no report.
    """
    from mfm_jax.bundle.card import Scores
    from mfm_jax.errors import UsageError, first_line

    file = report / "report.json"
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        systems, clips = told["systems"], told["protocol"]["clips"]
        metrics = [metric for metric in told["metrics"] if metric["main"]]
        rows = [
            [
                f"{metric['label']}{' [' + metric['unit'] + ']' if metric['unit'] else ''}",
                metric["better"],
                *(_figure(told["figures"][s].get(metric["key"]), metric) for s in systems),
            ]
            for metric in metrics
        ]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{file} is no report of mfm evaluate ({first_line(error)}): name its folder"
        ) from None
    about = f"mfm evaluate against real sound, {clips} clips; with intervals of 95 %:"
    return Scores(about, ("score", "better", *systems), rows)


def _figure(figure: dict[str, Any] | None, metric: dict[str, Any]) -> str:
    if figure is None or figure["value"] is None:
        return ""
    digits, low, high = metric["digits"], figure["low"], figure["high"]
    interval = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{figure['value']:.{digits}f}{interval}"
