"""`mfm bundle`: list what a bundle holds, check that it is as it was written, or compile for it."""

import argparse
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mfm_jax.cli import arguments as options

if TYPE_CHECKING:
    from mfm_jax.bundle import Bundle, Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of the command."""
    parser.description = (
        "List what a bundle holds, check that it is as it was written, or compile what generation "
        "runs with it."
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, run, about in (
        ("show", show, "list the components: size, parameters, precision and origin"),
        ("verify", verify, "compare all files and weights with their checksums"),
        (
            "compile",
            compile_programs,
            "write the compiled programs of generation beside the bundle, for devices like these "
            "and for the settings given",
        ),
    ):
        verb = verbs.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        verb.add_argument("bundle", type=options.bundle, metavar="DIR")
        verb.set_defaults(run=run)
    options.add_sampling(verb)
    options.add_computing(verb)
    verb.add_argument(
        "--platform",
        metavar="NAME",
        help="cpu, cuda or tpu; default: the one that generation would use here",
    )


def show(args: argparse.Namespace) -> int:
    """Print one block of lines for each component."""
    from mfm_jax.bundle import Bundle, combined
    from mfm_jax.bundle.licences import limits_of_use
    from mfm_jax.errors import one_line

    # What is listed need not be intact: that is for `verify`.
    bundle = Bundle.open(args.bundle, verify=False)
    total = 0
    for name, entry in bundle.entries.items():
        store = bundle.store(name)
        total += store.size
        kinds = Counter(listed.dtype for listed in store.arrays.values())
        precision = " and ".join(kinds)
        print(f"{name:10} {_size(store.size):>9}  {entry.parameters:>13,} parameters  {precision}")
        for told in _origin(bundle, entry.source):
            print(one_line(f"{'':10} {told}"))
    allowed, because = limits_of_use(bundle.entries)
    answer = {True: "yes", False: "no", None: "unknown"}[allowed]
    licence = combined(entry.source.licence for entry in bundle.entries.values())
    print(f"licence of the bundle: {one_line(licence)}")
    reason = f" (because of {', '.join(because)})" if because else ""
    print(f"commercial use: {answer}{reason}")
    settings = bundle.settings
    print(
        f"windows of {settings.seconds} s, {settings.sampler} with {settings.steps} steps, "
        f"guidance {settings.guidance}, {settings.schedule.prediction} prediction; "
        f"{_size(total)} in all"
    )
    return 0


def verify(args: argparse.Namespace) -> int:
    """Check every component; return 1 where one is damaged, each fault named."""
    from mfm_jax.bundle import Bundle
    from mfm_jax.errors import one_line

    bundle = Bundle.open(args.bundle)
    failed = 0
    for name in bundle.entries:
        problems = bundle.damages(name)
        for problem in problems:
            print(one_line(f"{name}: {problem}"))
        if not problems:
            print(f"{name}: as written")
        failed += bool(problems)
    return 1 if failed else 0


def compile_programs(args: argparse.Namespace) -> int:
    """Compile and write the programs, a line for each."""
    import jax

    from mfm_jax.errors import UsageError
    from mfm_jax.inference.generate import compile_programs

    if args.platform is not None:
        jax.config.update("jax_platforms", args.platform)
    try:
        jax.local_devices()
    except RuntimeError:
        raise UsageError(f"no devices of platform {args.platform}: leave --platform out") from None
    folder = compile_programs(args.bundle, **options.generation(args))
    print(f"{folder}: for this machine, these settings and this version of mfm-jax")
    return 0


def _origin(bundle: "Bundle", source: "Source") -> Iterator[str]:
    """Yield what a component was made from, in lines."""
    from mfm_jax.bundle import combined

    yield f"made by {source.made_by} (mfm-jax {source.version})"
    yield f"licence {combined([source.licence])}"
    if trained := _training(bundle, source):
        yield f"trained {trained}"
    for file, sha256 in source.files:
        yield f"from {file}  sha256 {sha256}"


def _training(bundle: "Bundle", source: "Source") -> str:
    """Return the networks and the data that a component was trained with, in words."""
    here = {name: entry.checksum for name, entry in bundle.entries.items()}
    networks = [
        name if here.get(name) == checksum else f"{name} (not the one in this bundle)"
        for name, checksum in source.trained_with
    ]
    parts = [f"with {', '.join(networks)}"] if networks else []
    return " ".join([*parts, f"on {source.data}"] if source.data else parts)


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"
