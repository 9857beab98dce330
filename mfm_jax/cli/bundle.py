"""`mfm bundle`: list what a bundle holds, check it, compile for it, or publish it."""

import argparse
from collections import Counter

from mfm_jax.cli import arguments as options
from mfm_jax.cli import push


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the verbs of the command."""
    parser.description = (
        "List what a bundle holds, check that it is as it was written, compile what generation "
        "runs with it, or publish it."
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
    push.add_arguments(verbs)


def show(args: argparse.Namespace) -> int:
    """Print one block of lines for each component."""
    from mfm_jax.bundle import Bundle, combined
    from mfm_jax.bundle.describe import byte_size, origin
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
        print(
            f"{name:10} {byte_size(store.size):>9}  {entry.parameters:>13,} parameters  {precision}"
        )
        for told in origin(bundle, entry.source):
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
        f"{byte_size(total)} in all"
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
