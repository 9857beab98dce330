"""The listener learns to name the material of each contact in real sound."""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.decoded import prepared_wave
from mfm_jax.data.loader import Element
from mfm_jax.foley.contacts import crops
from mfm_jax.foley.recipes.labelled import LabelledRecipe
from mfm_jax.foley.world import MATERIALS
from mfm_jax.media.audio import log_mel
from mfm_jax.models.listener import Listener, ListenerConfig
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float

SILENCE = float(np.log(1e-5))
BANDS = 8
"""Bands of the random equaliser."""


def foley_listener() -> ListenerConfig:
    """Return the sizes of a listener that tells the materials of the Foley world apart."""
    return ListenerConfig(tuple(material.name for material in MATERIALS))


@dataclass(frozen=True)
class ListenerRecipe(LabelledRecipe):
    """Cross-entropy of single contacts; generated sound is never heard in training."""

    network: ListenerConfig = field(default_factory=foley_listener)
    jitter: float = 0.03  # s; a detected contact lies this far from the true one at most
    gain: float = 1.5  # nats; largest change of loudness
    # nats; deviation of the gains of `BANDS`, between which they are interpolated
    tilt: float = 1.0
    pitch: float = 2.0  # bins; largest shift along the mel
    noise: float = 1.0  # nats; largest deviation of noise on the log-mel

    def read(self, element: Element) -> Element:
        """Crops are cut anew in each epoch; a clip without contacts has label -1."""
        mel = log_mel(prepared_wave(element)).astype(np.float16)
        known = element["onsets"] >= 0
        return {
            "mel": mel,
            "onsets": np.where(known, element["onsets"], 0.0).astype(np.float32),
            "count": known.sum().astype(np.int32),
            "materials": np.where(known, element["onset_materials"], -1).astype(np.int32),
        }

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Cut one contact of the clip and change its time, loudness, timbre, pitch and noise.

        The material must be recognised after everything that a chain of networks does to a sound.
        A vocoder that only knows the mel cannot keep the pitch within one of its bins.
        """
        made = self._crop(element, rng, self.jitter)
        gain, level = self.gain * rng.uniform(-1, 1), self.noise * rng.uniform()
        bins = np.linspace(0, BANDS - 1, made["crop"].shape[1])
        tilt = np.interp(bins, np.arange(BANDS), self.tilt * rng.standard_normal(BANDS))
        crop = shifted(made["crop"], self.pitch * rng.uniform(-1, 1))
        noised = crop + gain + tilt + level * rng.standard_normal(crop.shape)
        return {**made, "crop": np.maximum(noised, SILENCE).astype(np.float32)}

    def eval_transform(self, element: Element, rng: np.random.Generator) -> Element:
        return self._crop(element, np.random.default_rng(0), 0.0)

    def _crop(self, element: Element, rng: np.random.Generator, jitter: float) -> Element:
        which = rng.integers(max(int(element["count"]), 1))
        time = element["onsets"][which] + jitter * rng.uniform(-1, 1)
        crop = crops(element["mel"].astype(np.float32), np.array([time]))[0]
        return {"crop": crop, "material": element["materials"][which]}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Listener(self.network, rngs=rngs)

    def loss(self, module: Listener, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        labels = batch["material"]
        known = labels >= 0
        chances = jax.nn.log_softmax(module(batch["crop"]))
        right = jnp.take_along_axis(chances, jnp.maximum(labels, 0)[:, None], axis=1)[:, 0]
        hits = (chances.argmax(axis=1) == labels).mean(where=known)
        return -right.mean(where=known), {"hits": hits}

    def finish(self, module: Listener, workdir: Path, command: str) -> Path:
        return self.write_component("listener", self.network, module, workdir, command).path


def shifted(mel: Float[np.ndarray, "T M"], bins: float) -> Float[np.ndarray, "T M"]:
    """Return a mel that is shifted up by `bins`, with linear interpolation and repeated ends."""
    at = np.clip(np.arange(mel.shape[1]) - bins, 0, mel.shape[1] - 1)
    below = np.minimum(at.astype(int), mel.shape[1] - 2)
    share = at - below
    return (1 - share) * mel[:, below] + share * mel[:, below + 1]
