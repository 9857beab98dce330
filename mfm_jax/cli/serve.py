"""`mfm serve`: a page and a REST API that make sound for videos."""

import argparse

from mfm_jax.cli import arguments as options
from mfm_jax.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = "Serve a page and a REST API that make sound for videos."
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; default: only this machine"
    )
    parser.add_argument("--port", type=int, default=8000, help="default: 8000; 0 takes a free one")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name under which the server is known, such as sound.example.org (repeatable)",
    )
    parser.add_argument(
        "--proxy",
        metavar="ADDRESS",
        help="of a proxy in front, which tells the addresses of visitors (X-Forwarded-For)",
    )
    parser.add_argument(
        "--folder", type=options.path_here, metavar="DIR", help="for temporary files; default: /tmp"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="that jobs may still take once the server is told to stop; default: 30",
    )
    options.add_bundle(parser)
    options.add_verify(parser)
    group = parser.add_argument_group("limits")
    for name, default, metavar, about in (
        ("--max-size", 256, "MIB", "of a video"),
        ("--max-seconds", 60, "SECONDS", "of a video"),
        ("--max-candidates", 4, "N", "sounds made for one video"),
        ("--queue", 64, "N", "jobs that wait or run"),
        ("--per-visitor", 16, "N", "the same of one address"),
        ("--per-minute", 30, "N", "new jobs of one address"),
        ("--max-stored", 8192, "MIB", "of all files together"),
        ("--keep", 60, "MINUTES", "for which a result stays"),
    ):
        group.add_argument(
            name,
            type=options.at_least_one,
            default=default,
            metavar=metavar,
            help=f"{about}; default: {default}",
        )
    options.add_computing(parser)
    options.add_programs(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal comes."""
    try:
        from mfm_jax.serve.server import serve
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "python_multipart", "starlette", "pydantic"):
            raise
        raise UsageError(f"{error.name} is not installed: pip install 'mfm-jax[serve]'") from None
    from mfm_jax.bundle import Bundle
    from mfm_jax.serve.limits import Limits
    from mfm_jax.serve.service import Computing

    limits = Limits(
        upload=args.max_size << 20,
        seconds=args.max_seconds,
        candidates=args.max_candidates,
        queue=args.queue,
        each=args.per_visitor,
        per_minute=args.per_minute,
        stored=args.max_stored << 20,
        keep=60.0 * args.keep,
    )
    return serve(
        Bundle.open(args.bundle, verify=args.verify),
        limits,
        Computing(args.batch, args.precision, args.fsdp, args.tensor),
        host=args.host,
        port=args.port,
        names=args.name,
        proxy=args.proxy,
        folder=args.folder,
        grace=args.grace,
    )
