"""One program in several processes: how they find each other, and who speaks."""

import argparse

from mfm_jax.errors import SettingError, first_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `start` is told."""
    group = parser.add_argument_group("several processes")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="find the others by what a TPU pod, Slurm or Open MPI says; on a TPU pod each host "
        "runs the same command",
    )
    group.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, on any free port")
    group.add_argument("--processes", type=int, metavar="N", help="how many there are")
    group.add_argument("--process", type=int, metavar="I", help="which one this is, from 0")


def start(args: argparse.Namespace) -> None:
    """Join the other processes, if there are any. Nothing may have used a device before.

    Raises:
        SettingError: the arguments do not go together, or the others are not found.
    """
    given = [args.coordinator, args.processes, args.process]
    if not args.distributed and all(value is None for value in given):
        return
    import jax

    if not args.distributed and any(value is None for value in given):
        raise SettingError(
            "--coordinator, --processes and --process go together: give all three, or "
            "--distributed where the machine knows them"
        )
    try:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    except (RuntimeError, ValueError) as error:
        raise SettingError(f"the other processes are not found ({first_line(error)})") from None


def share(args: argparse.Namespace) -> tuple[int, int]:
    """Which part of how many is this process's, of work that needs no word between processes.

    So `--processes` and `--process` are enough.

    Raises:
        SettingError: the arguments do not go together, or the others are not found.
    """
    if args.distributed or args.coordinator is not None:
        import jax

        start(args)
        return jax.process_index(), jax.process_count()
    index, count = args.process or 0, args.processes or 1
    if (args.process is None) != (args.processes is None) or not 0 <= index < count:
        raise SettingError("--processes N and --process I go together, and I is from 0 to N - 1")
    return index, count


def say(text: str) -> None:
    """Print a line, once for all processes of a run."""
    import jax

    if jax.process_index() == 0:
        print(text, flush=True)
