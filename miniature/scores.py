"""The table of scores of test clips, between a floor and several ceilings."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp
from tqdm import tqdm

from mfm_jax.bundle import Bundle
from mfm_jax.foley.scores import Heard, score_waves
from mfm_jax.foley.world import KINDS
from mfm_jax.models.listener import Listener
from mfm_jax.storage.files import write_text
from mfm_jax.typing import Float
from miniature.sounds import WAYS, KnownClip, Synthesiser, read_clip, without_adapter

Waves = Sequence[Float[np.ndarray, " A"]]


@dataclass(frozen=True)
class Row:
    """The scores of all clips for one way of making sound."""

    way: str
    heard: list[Heard]
    kinds: list[str]

    def scores(self) -> dict[str, Any]:
        """Return the scores over all clips, and by the kind of motion of the first body."""
        parts: dict[str, Any] = sum(self.heard, Heard()).scores()
        for kind in KINDS:
            of_kind = [h for h, k in zip(self.heard, self.kinds, strict=True) if k == kind]
            if of_kind:
                parts[kind] = sum(of_kind, Heard()).scores()
        return parts


def open_clips(folder: Path, count: int | None = None) -> list[KnownClip]:
    """Open the first `count` clips, by seed, of a folder of Foley clips."""
    records = [json.loads(p.read_text()) for p in folder.glob("[0-9]*.json")]
    records.sort(key=lambda record: record["seed"])
    return [read_clip(folder / r["file"], r["kind"]) for r in records[:count]]


def hear(listener: Listener, clips: Sequence[KnownClip], waves: Waves) -> list[Heard]:
    """Score one sound for each clip."""
    truths, real = [clip.truth for clip in clips], [clip.wave for clip in clips]
    return score_waves(listener, waves, truths, real)


def score(
    bundle: Path,
    clips: Sequence[KnownClip],
    *,
    ways: Iterable[str] = WAYS,
    seed: int = 0,
    adapter: bool = True,
) -> list[Row]:
    """Score the clips in each way of making sound, with the bundle's adapter if it is to be used.

    The row of the floor, `shuffled`, follows that of `video`: each clip gets the sound that was
    generated for the next one.
    """
    synthesiser = Synthesiser.open(bundle)
    if not adapter:
        synthesiser = replace(synthesiser, model=without_adapter(synthesiser.model))
    listener = Bundle.open(bundle).load("listener", jnp.float32)
    kinds = [clip.kind for clip in clips]
    rows = []
    for way in ways:
        made = synthesiser.sounds(clips, way, seed=seed)
        waves = list(tqdm(made, desc=way, total=len(clips), disable=None))
        rows.append(Row(way, hear(listener, clips, waves), kinds))
        if way == "video":
            rows.append(Row("shuffled", hear(listener, clips, waves[1:] + waves[:1]), kinds))
    return rows


def normalised(value: float, floor: float, ceiling: float) -> float:
    """Return `value` on a scale from 0 (floor) to 1 (ceiling), or NaN if they are equal."""
    return (value - floor) / (ceiling - floor) if ceiling != floor else float("nan")


def table(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the scores of each row, and those of the video normalised by floor and ceiling."""
    scores = {row.way: row.scores() for row in rows}
    if {"video", "shuffled", "loa"} <= scores.keys():
        video, floor, ceiling = (scores[way] for way in ("video", "shuffled", "loa"))
        scores["normalised"] = {
            name: normalised(value, floor[name], ceiling[name])
            for name, value in video.items()
            if isinstance(value, float) and name != "onsets_per_second"
        }
    return scores


def write_scores(target: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """Write the table and `about`, which says how it was made, as JSON."""
    write_text(target, json.dumps({**about, "scores": table(rows)}, indent=1) + "\n")
