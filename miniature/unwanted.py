"""Measures guidance away from a sound: what is left of it, and of the one that is wanted."""

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.foley.scores import Heard
from mfm_jax.inference.pipeline import Sampling, VideoToAudio, sound_from_loa
from mfm_jax.inference.sound_encoders import hear_loa
from mfm_jax.media.audio import RATE, audiomae_input
from mfm_jax.storage.files import write_text
from mfm_jax.typing import Float
from miniature.document import LABELS, Table, number
from miniature.report import print_tables
from miniature.robust import add_common, first_clips
from miniature.scores import hear
from miniature.sounds import BATCH, KnownClip, without_adapter

Waves = Sequence[Float[np.ndarray, " A"]]
SCALES = (2.0, 4.0)


def others(clips: Sequence[KnownClip]) -> list[int]:
    """Return for each clip the next one of another material."""
    named = [set(clip.truth.materials) for clip in clips]
    after = [[(i + k) % len(clips) for k in range(1, len(clips))] for i in range(len(clips))]
    return [next(j for j in its if named[j] != named[i]) for i, its in enumerate(after)]


def heard_loa(model: VideoToAudio, bundle: Bundle, waves: Waves) -> Float[np.ndarray, "N L E"]:
    """Return what AudioMAE hears in sounds of one window."""
    audiomae, frames = bundle.load("audiomae", jnp.float32), bundle.config("audiomae").frames
    grid, samples = model.networks.mapper.config.loa, round(model.spec.seconds * RATE)
    fbank = np.stack([audiomae_input(wave, samples, frames) for wave in waves])
    parts = [jnp.asarray(fbank[at : at + BATCH]) for at in range(0, len(fbank), BATCH)]
    return np.concatenate([np.asarray(hear_loa(audiomae, part, grid=grid)) for part in parts])


def compare(bundle: Path, clips: Sequence[KnownClip], seed: int = 0) -> list[dict[str, Any]]:
    """Score the sound of LOA between two clips against each of them.

    The number of clips must be a multiple of `BATCH`.
    """
    opened, model = Bundle.open(bundle), VideoToAudio.open(bundle)
    listener = opened.load("listener", jnp.float32)
    n = without_adapter(model).networks.sound_networks
    pairs = others(clips)
    wanted = heard_loa(model, opened, [clip.wave for clip in clips])
    unwanted = wanted[pairs]
    by_time = unwanted.reshape(len(clips), *model.networks.mapper.config.loa.shape, -1)
    mean = np.broadcast_to(by_time.mean(axis=1, keepdims=True), by_time.shape)
    mean = np.ascontiguousarray(mean).reshape(unwanted.shape)
    keys = jax.random.split(jax.random.key(seed), len(clips))
    between = (wanted + unwanted) / 2

    def scores(negative: Float[np.ndarray, "N L E"] | None, guidance: float) -> dict[str, Any]:
        sampling = Sampling(steps=model.settings.steps, guidance=guidance)
        waves: list[Any] = []
        for at in range(0, len(clips), BATCH):
            part = slice(at, at + BATCH)
            empty = None if negative is None else jnp.asarray(negative[part])
            made = sound_from_loa(
                n, jnp.asarray(between[part]), keys[part], None, None, empty,
                settings=model.settings, sampling=sampling,
            )  # fmt: skip
            waves += list(np.asarray(made))
        sides = {"wanted": list(clips), "unwanted": [clips[j] for j in pairs]}
        return {k: sum(hear(listener, v, waves), Heard()).scores() for k, v in sides.items()}

    rows = []
    for scale in SCALES:
        for name, negative in (("zeros", None), ("mean", mean), ("in time", unwanted)):
            found = scores(negative, scale)
            rows.append({"negative": name, "guidance": scale, **found})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with a row for each negative LOA and scale."""
    names = ("onset_f1_100", "material", "event_f1")
    cells = [
        [
            row["negative"],
            f"{row['guidance']:g}",
            *(number(row[side][name]) for side in ("wanted", "unwanted") for name in names),
        ]
        for row in rows
    ]
    columns = [f"{side}: {LABELS[name]}" for side in ("wanted", "unwanted") for name in names]
    return {
        "title": "Away from a sound",
        "columns": ["negative LOA", "guidance", *columns],
        "rows": cells,
    }


def add_unwanted(parser: argparse.ArgumentParser) -> None:
    """Add the options of `unwanted`."""
    add_common(parser)
    parser.add_argument("--count", type=int, default=64, help=f"test clips, a multiple of {BATCH}")
    parser.set_defaults(run=run_unwanted)


def run_unwanted(args: argparse.Namespace) -> None:
    """Make the sounds, score them and write the results."""
    clips = first_clips(args.workdir, args.count - args.count % BATCH)
    start_time = time.monotonic()
    rows = compare(args.bundle, clips)
    about = {
        "command": args.command_line,
        "clips": len(clips),
        "seconds": time.monotonic() - start_time,
    }
    found = {**about, "rows": rows, "tables": [table(rows)]}
    write_text(args.output / "unwanted.json", json.dumps(found, indent=1) + "\n")
    print_tables(found["tables"])
