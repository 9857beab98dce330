"""`mfm evaluate`: score generated sound against real sound, with a report to read and hear."""

import argparse

from mfm_jax.cli import arguments as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = "Score generated sound against real sound. Clips are paired by name."
    parser.add_argument(
        "generated",
        nargs="+",
        metavar="GENERATED",
        help="a folder of sounds or videos, or a manifest (.csv or .jsonl with a column 'file'); "
        "several systems as NAME=FOLDER, each compared with the first",
    )
    parser.add_argument(
        "--reference",
        required=True,
        type=options.path,
        metavar="REAL",
        help="folder or manifest of the real sounds, or of the videos with them",
    )
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        type=options.path,
        metavar="REPORT",
        help="a new folder, or one with an earlier report, which is replaced",
    )
    parser.add_argument(
        "--bundle",
        type=options.bundle,
        metavar="DIR",
        help="its networks give the scores that need one (cnn14, audiomae); default: none",
    )
    options.add_verify(parser)
    options.add_sandbox(parser)
    parser.add_argument(
        "--onsets",
        type=options.path,
        metavar="DIR",
        help="annotated onsets: NAME.txt with seconds in the first column; default: those detected "
        "in the real sound",
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="add what the published scripts compute where our definitions differ",
    )
    parser.add_argument(
        "--batch", type=options.at_least_one, help="clips that networks hear at once"
    )
    options.add_precision(parser, "of the networks; default: float32", default="float32")
    options.add_programs(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print the figures; return 1 where some clips failed, each named."""
    from mfm_jax.evaluation.evaluate import EvaluationError, evaluate
    from mfm_jax.runtime.progress import Progress

    failures: tuple[str, ...] = ()
    with Progress(None, "clips") as progress:
        try:
            report = evaluate(
                args.generated,
                args.reference,
                args.output,
                bundle=args.bundle,
                verify=args.verify,
                published=args.published,
                onsets=args.onsets,
                precision=args.precision,
                batch=args.batch,
                command=args.command_line,
                progress=progress,
            )
        except EvaluationError as error:
            report, failures = error.report, error.failures
    print(*report.table(), sep="\n")
    if any(figure.caution for its in report.figures.values() for figure in its.values()):
        print("* not reliable with so few clips: report.json says why")
    print(f"{args.output / 'index.html'}: {report.protocol['clips']} clips")
    for failure in failures:
        print(f"mfm evaluate: {failure}")
    return 1 if failures else 0
