"""Measures guidance at some noise levels only, rescaled, and of other scales, one noise for all."""

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

from mfm_jax.bundle import Bundle
from mfm_jax.diffusion import Schedule
from mfm_jax.diffusion.samplers import Sampler
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.storage.files import write_text
from miniature.document import LABELS, Table, number
from miniature.report import print_tables
from miniature.robust import add_common, first_clips
from miniature.steps import Way, compare

STEPS = (25, 10, 8)
"""Steps of DPM-Solver++; the scale is changed with the last number alone."""
SCALES = (1.0, 2.0, 3.0, 6.0)
INTERVALS = ((0.3, 3.0), (0.3, 12.0))
"""Noise levels between which there is guidance. The first is near the best one for images."""
RESCALE = 0.7
"""The value in the paper on rescaled guidance."""


def ways(guidance: float, steps: Sequence[int] = STEPS) -> list[Way]:
    """Return the ways of guidance that are compared; the first one is the reference."""
    found = []
    for number_of_steps in steps:
        plain = Sampling("dpm++", number_of_steps, guidance)
        name = f"{number_of_steps} steps"
        found.append(Way(f"{name}, guidance {guidance:g}", plain))
        for low, high in INTERVALS:
            only = plain._replace(interval=(low, high))
            found.append(Way(f"{name}, only at noise levels {low:g} to {high:g}", only))
        found.append(Way(f"{name}, rescaled by {RESCALE:g}", plain._replace(rescale=RESCALE)))
    found += [Way(f"{name}, guidance {s:g}", plain._replace(guidance=s)) for s in SCALES]
    return found


def evaluations(sampling: Sampling, schedule: Schedule) -> int:
    """Return how often the UNet reads the latents of a sound: twice in a step with guidance."""
    if sampling.guidance == 1:
        return sampling.steps
    sampler = Sampler(schedule, sampling.sampler, sampling.steps, sampling.spacing)
    return sampling.steps + sum(sampler.within(sampling.interval))


def table(compared: Sequence[Way], rows: Sequence[dict[str, Any]], schedule: Schedule) -> Table:
    """Return a table with a row for each way of guidance."""
    cells = [
        [
            row["way"],
            evaluations(way.sampling, schedule),
            number(row["distance"]),
            *(number(row["scores"].get(name)) for name in LABELS),
        ]
        for way, row in zip(compared, rows, strict=True)
    ]
    columns = ["DPM-Solver++", "UNet evaluations", "distance of latents", *LABELS.values()]
    return {"title": "Guidance", "columns": columns, "rows": cells}


def add_guidance(parser: argparse.ArgumentParser) -> None:
    """Add the options of `guidance`."""
    add_common(parser)
    parser.add_argument("--count", type=int, default=64, help="test clips")
    parser.set_defaults(run=run_guidance)


def run_guidance(args: argparse.Namespace) -> None:
    """Make the sounds, score them and write the results."""
    clips = first_clips(args.workdir, args.count)
    start_time = time.monotonic()
    settings = Bundle.open(args.bundle).settings
    compared = ways(settings.guidance)
    rows = compare(args.bundle, clips, compared)
    about = {
        "command": args.command_line,
        "clips": args.count,
        "seconds": time.monotonic() - start_time,
    }
    found = {**about, "rows": rows, "tables": [table(compared, rows, settings.schedule)]}
    write_text(args.output / "guidance.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
