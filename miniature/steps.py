"""Measures what few steps of the sampler cost, beside DDIM with many from the same noise."""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp
from tqdm import tqdm

from mfm_jax.bundle import Bundle
from mfm_jax.foley.scores import Heard
from mfm_jax.inference.pipeline import (
    Condition,
    Sampling,
    VideoToAudio,
    latents_from_loa,
    sound_from_latents,
)
from mfm_jax.media.frames import windows
from mfm_jax.storage.files import write_text
from miniature.document import LABELS, Table, number
from miniature.report import print_tables
from miniature.robust import add_common, first_clips
from miniature.scores import hear
from miniature.sounds import BATCH, KnownClip

MANY = 200
"""Steps of the DDIM run that the others are compared with."""
FEW = (5, 8, 10, 15, 20, 25)


class Way(NamedTuple):
    """A sampler, with the name of its row."""

    name: str
    sampling: Sampling


def ways(guidance: float, few: Sequence[int] = FEW, many: int = MANY) -> list[Way]:
    """Return the samplers that are compared; the first one is the reference."""
    found = [Way(f"DDIM, {many}", Sampling("ddim", many, guidance))]
    for steps in few:
        for spacing in ("linspace", "logsnr"):
            sampling = Sampling("dpm++", steps, guidance, spacing=spacing)
            found.append(Way(f"DPM-Solver++ {spacing}, {steps}", sampling))
    found += [Way(f"DDIM, {steps}", Sampling("ddim", steps, guidance)) for steps in few[-1:]]
    return found


def mapped(model: VideoToAudio, clips: Sequence[KnownClip]) -> Iterator[tuple[int, Condition]]:
    """Yield what the UNet reads of clips of one window each, and how many of a batch count."""
    for at in range(0, len(clips), BATCH):
        group = clips[at : at + BATCH]
        seen = [next(windows(clip.path, model.spec)) for clip in group]
        full = [*seen, *[seen[-1]] * (BATCH - len(seen))]
        yield len(group), model.predict(model.encode(full))


def compare(
    bundle: Path, clips: Sequence[KnownClip], compared: Sequence[Way], seed: int = 0
) -> list[dict[str, Any]]:
    """Score each way of sampling, and measure how far its latents are from those of the first.

    The distance is the RMS of the difference over that of the first way's latents, over all clips.
    """
    model, listener = VideoToAudio.open(bundle), Bundle.open(bundle).load("listener", jnp.float32)
    n, settings = model.networks.sound_networks, model.settings
    known = list(mapped(model, clips))
    keys = jax.random.split(jax.random.key(seed), len(known) * BATCH).reshape(-1, BATCH)
    rows: list[dict[str, Any]] = []
    reference = np.zeros(0)
    for way in tqdm(compared, disable=None):
        latents, waves = [], []
        for (count, read), its in zip(known, keys, strict=True):
            made = latents_from_loa(
                n, jnp.asarray(read.loa), its, None, None, None, read.streams,
                settings=settings, sampling=way.sampling,
            )  # fmt: skip
            latents.append(np.asarray(made)[:count])
            waves += list(np.asarray(sound_from_latents(n, made, settings=settings))[:count])
        found = np.concatenate(latents)
        reference = found if not rows else reference
        heard = sum(hear(listener, clips, waves), Heard()).scores()
        rows.append(
            {
                "way": way.name,
                "evaluations": way.sampling.steps,
                "distance": float(
                    np.sqrt(np.mean((found - reference) ** 2) / np.mean(reference**2))
                ),
                "scores": heard,
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row for each way of sampling."""
    cells = [
        [
            row["way"],
            row["evaluations"],
            number(row["distance"]),
            *(number(row["scores"].get(name)) for name in LABELS),
        ]
        for row in rows
    ]
    columns = ["sampler, steps", "evaluations", "distance of latents", *LABELS.values()]
    return {"title": "Steps of the sampler", "columns": columns, "rows": cells}


def add_steps(parser: argparse.ArgumentParser) -> None:
    """Add the options of `steps`."""
    add_common(parser)
    parser.add_argument("--count", type=int, default=192, help="test clips")
    parser.set_defaults(run=run_steps)


def run_steps(args: argparse.Namespace) -> None:
    """Make the sounds, score them and write the results."""
    clips = first_clips(args.workdir, args.count)
    start_time = time.monotonic()
    guidance = Bundle.open(args.bundle).settings.guidance
    rows = compare(args.bundle, clips, ways(guidance))
    about = {
        "command": args.command_line,
        "clips": args.count,
        "seconds": time.monotonic() - start_time,
    }
    found = {**about, "rows": rows, "tables": [table(rows)]}
    write_text(args.output / "steps.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
