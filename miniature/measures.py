"""What predicted LOA is worth: how near it comes to true LOA, and what is heard of its sound.

All is kept clip by clip, as numbers that add up (`miniature.statistics`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.data.clips import DataError
from mfm_jax.data.features import FeatureSource
from mfm_jax.foley.scores import Heard
from mfm_jax.inference.pipeline import stitch
from mfm_jax.mapper import build_mapper
from mfm_jax.models.audiomae import LOA, pool_loa
from mfm_jax.models.listener import Listener
from mfm_jax.typing import Float
from miniature.scores import hear
from miniature.sounds import BATCH, Clip, Studio, read_clip
from miniature.statistics import Ratio, found_among

Line = Mapping[str, Any]
"""What is kept of a run: a line of JSON."""
Waves = list[Float[np.ndarray, " A"]]


class Score(NamedTuple):
    """A score in tables, and the counts of a clip that it adds up and divides."""

    label: str
    top: str
    bottom: tuple[str, ...] = ()  # the number of clips if empty
    factor: float = 1.0  # on the top
    higher: bool = True  # is better


SCORES = {
    "loa_error": Score("LOA error", "loa_error", higher=False),
    "recall_1": Score("R@1 of 64", "found_loa"),
    "onset_f1_50": Score("onset F1 50 ms", "hits_50", ("found", "true"), 2.0),
    "onset_f1_100": Score("onset F1 100 ms", "hits_100", ("found", "true"), 2.0),
    "material": Score("material", "materials_hit", ("materials",)),
    "event_f1": Score("event F1", "event_hits", ("found", "true"), 2.0),
    "log_mel": Score("log-mel distance", "log_mel", higher=False),
}
"""The first two of all clips, the others of those whose sound is made."""


def ratio(lines: Sequence[Line], name: str) -> Ratio:
    """A score of the same clips in several runs, a row each."""
    score = SCORES[name]
    counts = [line["counts"] for line in lines]
    top = score.factor * np.array([c[score.top] for c in counts], float)
    parts = [np.array([c[part] for c in counts], float) for part in score.bottom]
    return Ratio(top, np.sum(parts, axis=0) if parts else np.ones_like(top))


def scored(line: Line) -> list[str]:
    """The scores that a line has the counts for."""
    return [name for name, score in SCORES.items() if score.top in line["counts"]]


@dataclass(frozen=True)
class Asked:
    """The clips that mappers predict LOA for."""

    features: Path  # a folder of features
    videos: Path  # the folder of their files, `ID.mp4`
    count: int  # of them, the first by id, whose sound is made and heard; 0: none
    steps: int = 20  # of the sampler


@lru_cache(maxsize=1)
def _studio(bundle: Path) -> Studio:
    return Studio.open(bundle)


def studio_of(bundle: Path, loa: LOA) -> Studio:
    """The networks that make sound of LOA with this grid, whatever grid the bundle's mapper has."""
    studio = _studio(bundle)
    networks = studio.model.networks
    config = networks.mapper.config
    if loa == config.loa:
        return studio
    # The UNet is told when each token lies, which is read from the mapper's config. Its weights
    # are not used.
    mapper = build_mapper(replace(config, loa=loa), rngs=nnx.Rngs(0))
    model = replace(studio.model, networks=networks._replace(mapper=mapper))
    return replace(studio, model=model)


def true_loa(folder: Path, loa: LOA) -> Float[np.ndarray, "N K D"]:
    """LOA of every clip in a folder of features, in LOA's own units.

    Raises:
        DataError: there are no finished features, or they lack AudioMAE's.
    """
    source = FeatureSource(folder)
    if "audiomae" not in source.about["fields"]:
        raise DataError(f"{folder} has no audiomae: extract it with a bundle that has the network")
    pool = jax.jit(lambda tokens: pool_loa(tokens.astype(jnp.float32), loa.grid, loa.pool))
    elements = (source[i]["audiomae"] for i in range(len(source)))
    return np.concatenate([np.asarray(pool(tokens[None])) for tokens in elements])


@dataclass(frozen=True)
class Judge:
    """Compares predicted LOA with the truth about the clips that it was predicted for."""

    studio: Studio
    listener: Listener
    clips: list[Clip]  # those whose sound is heard
    true: Float[np.ndarray, "N K D"]  # of all clips, in LOA's own units
    mean: Float[np.ndarray, " D"]  # of LOA of all training clips, for one unit in all runs
    std: Float[np.ndarray, " D"]

    @classmethod
    def open(cls, bundle: Path, train: Path, asked: Asked, loa: LOA) -> "Judge":
        """For LOA of this grid; `train` has the features that tell the units of the LOA error.

        Raises:
            BundleError, DataError, MediaError, WorldError: something is missing or broken.
        """
        source = FeatureSource(asked.features)
        names = [source.id_of(i) for i in range(min(asked.count, len(source)))]
        clips = [read_clip(asked.videos / f"{name}.mp4") for name in names]
        known, studio = true_loa(train, loa), studio_of(bundle, loa)
        return cls(
            replace(studio, sampling=studio.sampling._replace(steps=asked.steps)),
            Bundle.open(bundle).load("listener", jnp.float32),
            clips,
            true_loa(asked.features, loa),
            known.mean(axis=(0, 1)),
            np.maximum(known.std(axis=(0, 1)), 1e-6),
        )

    def measure(
        self, made: Float[np.ndarray, "N K D"], waves: Waves | None = None
    ) -> tuple[dict[str, list], Waves]:
        """The counts of each clip for LOA in its own units, and the sound that was made of it.

        Where `waves` are given these are heard instead.
        """
        standard = [(loa - self.mean) / self.std for loa in (made, self.true)]
        errors = ((standard[0] - standard[1]) ** 2).mean(axis=(1, 2))
        counts: dict[str, list] = {
            "loa_error": [round(float(error), 4) for error in errors],
            "found_loa": found_among(*standard).tolist(),
        }
        if not self.clips:
            return counts, []
        waves = self.sounds(made) if waves is None else waves
        return counts | count_heard(hear(self.listener, self.clips, waves)), waves

    def shuffled(self, made: Float[np.ndarray, "N K D"], waves: Waves) -> dict[str, list]:
        """The counts where each clip is given the LOA and the sound of the one before: a floor."""
        return self.measure(np.roll(made, 1, axis=0), waves[-1:] + waves[:-1])[0]

    def sounds(self, made: Float[np.ndarray, "N K D"]) -> Waves:
        """The sound of the clips that are heard; the noise of each is the same in every run."""
        waves: Waves = []
        for start in range(0, len(self.clips), BATCH):
            numbers = np.arange(start, min(start + BATCH, len(self.clips)))
            # A last batch that is not full gets copies: another shape would be compiled anew.
            full = np.pad(numbers, (0, BATCH - len(numbers)), mode="edge")
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.asarray(full))
            made_now = self.studio.sound(jnp.asarray(made[full], jnp.float32), keys)
            waves += list(np.asarray(made_now)[: len(numbers)])
        return [
            stitch([wave], self.studio.spec, len(clip.wave))
            for wave, clip in zip(waves, self.clips, strict=True)
        ]


def count_heard(heard: Sequence[Heard]) -> dict[str, list]:
    """What was heard of each clip as lists of numbers that add up."""
    return {
        "found": [h.wide.found for h in heard],
        "true": [h.wide.true for h in heard],
        "hits_50": [h.near.hits for h in heard],
        "hits_100": [h.wide.hits for h in heard],
        "event_hits": [h.events.hits for h in heard],
        "materials": [h.named.true for h in heard],
        "materials_hit": [h.named.hits for h in heard],
        "log_mel": [round(h.log_mel, 4) for h in heard],
    }
