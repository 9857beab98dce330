"""`mfm status`: how far runs are, read from what they keep in their folders."""

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

from mfm_jax.cli import arguments as options

if TYPE_CHECKING:
    from mfm_jax.inference.segments import JobFiles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.description = (
        "Say in a line how far a training run or a job of `mfm generate` is. This reads the folder "
        "alone, so it works from any machine that sees it, and after the run, too."
    )
    parser.add_argument(
        "folder",
        nargs="+",
        type=options.path,
        metavar="DIR",
        help="the --workdir of a run, or the folder of outputs",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print a line for each folder; return 1 if one is neither."""
    from mfm_jax.inference.record import NAME as OUTPUTS
    from mfm_jax.inference.segments import unfinished
    from mfm_jax.train.goodput import NAME as BOOKED

    unknown = 0
    for folder in args.folder:
        if (folder / BOOKED).is_file():
            print(f"{folder}: {training(folder)}")
        elif jobs := unfinished(folder):
            print(f"{folder}: {shared_generation(jobs[-1])}")
        elif (folder / OUTPUTS).is_file():
            print(f"{folder}: {generation(folder)}")
        else:
            print(f"{folder}: has no {BOOKED} of a training run, and no {OUTPUTS} of outputs")
            unknown += 1
    return 1 if unknown else 0


def training(folder: Path) -> str:
    """Say how far a training run is: its step, last report and goodput."""
    from mfm_jax.storage.json_lines import read_json_lines
    from mfm_jax.train.goodput import NAME, read_lines, summarised, told, total
    from mfm_jax.train.log import REPORTS

    lines = read_lines(folder / NAME)
    if not lines:
        return "nothing is booked yet"
    words = [f"step {lines[-1].step} of {_steps(folder)}"]
    reports = [line for line in read_json_lines(folder / REPORTS) if "loss" in line]
    if reports:
        words.append(f"loss {reports[-1]['loss']:.4g}")
        if "clips_per_second" in reports[-1]:
            words.append(f"{reports[-1]['clips_per_second']:.4g} clips/s")
    words += [told(summarised(total(lines))), _ago(lines[-1].time)]
    return ", ".join(words)


def generation(folder: Path) -> str:
    """Say what is made in a folder of outputs, and what failed."""
    from mfm_jax.inference.record import FAILED, NAME, read_record

    made = read_record(folder).values()
    seconds = sum(entry.get("seconds", 0.0) for entry in made)
    words = [f"{len(made)} clips made, {seconds / 60:.1f} min of sound"]
    if (folder / FAILED).is_file():
        words.append(f"some failed: see {folder / FAILED}")
    return ", ".join([*words, _ago((folder / NAME).stat().st_mtime)])


def shared_generation(job: "JobFiles") -> str:
    """Say how far several workers are with a job, and who is at work."""
    from mfm_jax.inference.shares import workers

    lines, asked, at_work = job.lines(), job.description().get("asked", {}), workers(job.folder)
    failed = sum("failed" in line for line in lines)
    words = [f"{len(lines) - failed} of {asked.get('clips', '?')} clips made"]
    words += [f"{failed} failed"] * bool(failed)
    names = f" ({', '.join(at_work)})" if at_work else ""
    return ", ".join([*words, f"{len(at_work)} at work{names}"])


def _steps(folder: Path) -> int | str:
    """Return how many steps the config of a run asks for, or a question mark."""
    from mfm_jax.train.workdir import CONFIG

    try:
        return json.loads((folder / CONFIG).read_bytes())["steps"]
    except (OSError, ValueError, TypeError, KeyError):
        return "?"


def _ago(when: float) -> str:
    from mfm_jax.runtime.throughput import duration

    return f"last report {duration(max(0.0, time.time() - when))} ago"
