"""Scores predicted LOA: how close it is to true LOA, and what is heard in the sound made of it.

Everything is counted clip by clip, in numbers that can be added up (`miniature.statistics`).
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
from mfm_jax.mapper import Streams, build_mapper
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.listener import Listener
from mfm_jax.typing import Float
from miniature.scores import hear
from miniature.sounds import BATCH, KnownClip, Synthesiser, read_clip, without_adapter
from miniature.statistics import Ratio, recall_at_1

Line = Mapping[str, Any]
"""The record of a run, a line of JSON."""
Waves = list[Float[np.ndarray, " A"]]


class Score(NamedTuple):
    """A score: a ratio of counts that are summed over clips."""

    label: str  # in tables
    numerator: str  # name of a count
    denominator: tuple[str, ...] = ()  # names of counts; the number of clips if empty
    multiplier: float = 1.0  # of the numerator
    higher: bool = True  # higher is better


SCORES = {
    "loa_error": Score("LOA error", "loa_error", higher=False),
    "recall_1": Score("R@1 of 64", "found_loa"),
    "onset_f1_50": Score("onset F1 50 ms", "hits_50", ("found", "true"), 2.0),
    "onset_f1_100": Score("onset F1 100 ms", "hits_100", ("found", "true"), 2.0),
    "material": Score("material", "materials_hit", ("materials",)),
    "event_f1": Score("event F1", "event_hits", ("found", "true"), 2.0),
    "log_mel": Score("log-mel distance", "log_mel", higher=False),
}
"""Scores by name: the first two over all clips, the others over clips whose sound is generated."""


def ratio(lines: Sequence[Line], name: str) -> Ratio:
    """Return a score as a ratio of counts, by run and by clip; all runs have the same clips."""
    score = SCORES[name]
    counts = [line["counts"] for line in lines]
    numerator = score.multiplier * np.array([c[score.numerator] for c in counts], float)
    parts = [np.array([c[part] for c in counts], float) for part in score.denominator]
    return Ratio(numerator, np.sum(parts, axis=0) if parts else np.ones_like(numerator))


def available_scores(line: Line) -> list[str]:
    """Return the names of the scores that a line has the counts for."""
    return [name for name, score in SCORES.items() if score.numerator in line["counts"]]


@dataclass(frozen=True)
class EvalSet:
    """The clips that mappers are scored on."""

    features: Path  # folder of features
    videos: Path  # folder of the files, `ID.mp4`
    sounds: int  # clips whose sound is generated and scored, the first by id; 0: none
    sampler_steps: int = 20


@lru_cache(maxsize=1)
def _synthesiser(bundle: Path) -> Synthesiser:
    opened = Synthesiser.open(bundle)
    return replace(opened, model=without_adapter(opened.model))


def synthesiser_for(bundle: Path, loa: LOA) -> Synthesiser:
    """Return the networks that turn LOA of this grid into sound, and hear nothing but LOA.

    The bundle's mapper may have another grid.
    """
    synthesiser = _synthesiser(bundle)
    networks = synthesiser.model.networks
    config = networks.mapper.config
    if loa == config.loa:
        return synthesiser
    # The UNet reads the times of LOA tokens from the mapper's config. The mapper's weights are not
    # used.
    mapper = build_mapper(replace(config, loa=loa), rngs=nnx.Rngs(0))
    model = replace(synthesiser.model, networks=networks._replace(mapper=mapper))
    return replace(synthesiser, model=model)


def true_loa(folder: Path, loa: LOA) -> Float[np.ndarray, "N K D"]:
    """Return the LOA of every clip in a folder of features, in LOA's own units.

    Raises:
        DataError: there are no finished features, or they lack AudioMAE's.
    """
    source = FeatureSource(folder)
    if "audiomae" not in source.about["fields"]:
        raise DataError(f"{folder} has no audiomae: extract it with a bundle that has the network")
    pool = jax.jit(lambda tokens: loa.pooled(tokens.astype(jnp.float32)))
    elements = (source[i]["audiomae"] for i in range(len(source)))
    return np.concatenate([np.asarray(pool(tokens[None])) for tokens in elements])


@dataclass(frozen=True)
class Scorer:
    """Scores the LOA that is predicted for an evaluation set."""

    synthesiser: Synthesiser
    listener: Listener
    clips: list[KnownClip]  # clips whose sound is generated
    true: Float[np.ndarray, "N K D"]  # LOA of all clips, in its own units
    # Mean and standard deviation of LOA over all training clips. LOA errors are in these units, so
    # that all runs are comparable.
    mean: Float[np.ndarray, " D"]
    std: Float[np.ndarray, " D"]

    @classmethod
    def open(cls, bundle: Path, train: Path, eval_set: EvalSet, loa: LOA) -> "Scorer":
        """Open what is needed to score LOA of this grid.

        Args:
            train: folder of the features of the training clips, which give the LOA error its units.

        Raises:
            BundleError, DataError, MediaError, WorldError: something is missing or broken.
        """
        source = FeatureSource(eval_set.features)
        names = [source.id_of(i) for i in range(min(eval_set.sounds, len(source)))]
        clips = [read_clip(eval_set.videos / f"{name}.mp4") for name in names]
        known, synthesiser = true_loa(train, loa), synthesiser_for(bundle, loa)
        sampling = synthesiser.sampling._replace(steps=eval_set.sampler_steps)
        return cls(
            replace(synthesiser, sampling=sampling),
            Bundle.open(bundle).load("listener", jnp.float32),
            clips,
            true_loa(eval_set.features, loa),
            known.mean(axis=(0, 1)),
            np.maximum(known.std(axis=(0, 1)), 1e-6),
        )

    def measure(
        self, predicted: Float[np.ndarray, "N K D"], waves: Waves | None = None
    ) -> tuple[dict[str, list], Waves]:
        """Return counts by clip for LOA in its own units, and the sound that was scored.

        The sound is generated from the LOA unless `waves` are given.
        """
        standard = [(loa - self.mean) / self.std for loa in (predicted, self.true)]
        errors = ((standard[0] - standard[1]) ** 2).mean(axis=(1, 2))
        counts: dict[str, list] = {
            "loa_error": [round(float(error), 4) for error in errors],
            "found_loa": recall_at_1(*standard).tolist(),
        }
        if not self.clips:
            return counts, []
        waves = self.sounds(predicted) if waves is None else waves
        return counts | counts_by_clip(hear(self.listener, self.clips, waves)), waves

    def shuffled(self, predicted: Float[np.ndarray, "N K D"], waves: Waves) -> dict[str, list]:
        """Return the counts where each clip has the LOA and the sound of the clip before it.

        This is the floor of all scores.
        """
        return self.measure(np.roll(predicted, 1, axis=0), waves[-1:] + waves[:-1])[0]

    def sounds(self, loa: Float[np.ndarray, "N K D"], streams: Streams | None = None) -> Waves:
        """Generate the sound of `clips` from their LOA, with the same noise in every run.

        Args:
            streams: what the adapter of the UNet reads of the clips, if it has one.
        """
        waves: Waves = []
        for start in range(0, len(self.clips), BATCH):
            numbers = np.arange(start, min(start + BATCH, len(self.clips)))
            # The last batch is padded with copies: another shape would be compiled again.
            full = np.pad(numbers, (0, BATCH - len(numbers)), mode="edge")
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.asarray(full))
            video = jax.tree.map(lambda each, at=full: jnp.asarray(each[at], jnp.float32), streams)
            batch = self.synthesiser.sound(jnp.asarray(loa[full], jnp.float32), keys, video)
            waves += list(np.asarray(batch)[: len(numbers)])
        return [
            stitch([wave], self.synthesiser.spec, len(clip.wave))
            for wave, clip in zip(waves, self.clips, strict=True)
        ]


def counts_by_clip(heard: Sequence[Heard]) -> dict[str, list]:
    """Return what was heard as lists of counts, one number for each clip."""
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
