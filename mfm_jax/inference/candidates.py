"""Several sounds of a video, of which the one is kept that is nearest to what was predicted.

The mapper predicts LOA from the video, and AudioMAE hears LOA in a sound. Their distance needs no
label and no text. It is the error that the mapper's training reports. Sounds in which Cnn14 hears
a class that is not wanted can be left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UsageError
from mfm_jax.inference.pipeline import Made, VideoToAudio
from mfm_jax.inference.sound_encoders import encode_audiomae, encode_cnn14
from mfm_jax.mapper import Mapper
from mfm_jax.media.audio import RATE, audiomae_input
from mfm_jax.metrics.spectra import cnn14_log_mel, prepare_for_cnn14
from mfm_jax.models.audiomae import AudioMAE
from mfm_jax.models.cnn14 import Cnn14Tagger
from mfm_jax.typing import Array, Float

CLASSES = {"speech": 0, "singing": 27, "music": 137}
"""Classes that can be vetoed, with their numbers in AudioSet's `class_labels_indices.csv`."""

CERTAIN = 0.5
"""Probability from which on a class counts as heard."""


class Choice(NamedTuple):
    """The candidate that is kept, and why."""

    number: int = 0  # from 0
    errors: Sequence[float] = ()  # of the LOA of each candidate
    vetoed: Sequence[str] = ()  # the class for which each is vetoed, or nothing; empty: no veto

    @property
    def words(self) -> str:
        """The choice in words, in parentheses; empty for a single candidate."""
        if len(self.errors) < 2:
            return ""
        heard = self.vetoed or [""] * len(self.errors)
        told = [
            f"{error:.3f}{f' with {name}' if name else ''}"
            for error, name in zip(self.errors, heard, strict=True)
        ]
        return f" (candidate {self.number + 1} of {len(told)}, LOA errors {', '.join(told)})"

    @property
    def notes(self) -> list[str]:
        """Lines about what is other than one might expect."""
        if not self.vetoed or not all(self.vetoed):
            return []
        names = " or ".join(sorted(set(self.vetoed)))
        return [f"{names} is heard in all of its {len(self.vetoed)} candidates: ask for more"]


@dataclass(frozen=True)
class Judge:
    """Measures how far sounds are from what was predicted of their video, and what is in them."""

    audiomae: AudioMAE
    frames: int  # of AudioMAE's input
    mapper: Mapper
    samples: int  # of a window
    tagger: Cnn14Tagger | None = None  # needed for a veto
    veto: tuple[str, ...] = ()  # of `CLASSES`

    @classmethod
    def open(
        cls, bundle: Bundle, model: VideoToAudio, veto: Sequence[str] = (), **how: Any
    ) -> "Judge":
        """Load AudioMAE, and Cnn14 if there is a veto, beside the networks of a model.

        Args:
            veto: classes of sounds that are not wanted, of `CLASSES`.
            how: as `Bundle.load`.

        Raises:
            UsageError: the bundle does not have them.
        """
        if "audiomae" not in bundle.entries:
            raise UsageError(
                f"bundle {bundle.path} has no AudioMAE, which ranks candidates: convert it, or ask "
                "for one candidate"
            )
        if veto and "cnn14" not in bundle.entries:
            raise UsageError(
                f"bundle {bundle.path} has no Cnn14, which hears {' and '.join(veto)}: convert it, "
                "or ask for no veto"
            )
        return cls(
            bundle.load("audiomae", **how),
            bundle.config("audiomae").frames,
            model.networks.mapper,
            round(model.spec.seconds * RATE),
            bundle.load("cnn14", **how) if veto else None,
            tuple(veto),
        )

    def errors(
        self, waves: Float[np.ndarray, "N A"], loa: Float[np.ndarray, "L E"]
    ) -> Float[np.ndarray, " N"]:
        """Return the mean squared error of the LOA of each sound, in standard deviations squared.

        Args:
            waves: sounds of one window.
            loa: what was predicted of it.
        """
        fbank = np.stack([audiomae_input(wave, self.samples, self.frames) for wave in waves])
        return np.asarray(_errors(self.audiomae, self.mapper, jnp.asarray(fbank), loa[None]))

    def heard(self, waves: Float[np.ndarray, "N A"]) -> Float[np.ndarray, "N K"]:
        """Return the probability that each class of the veto is in each sound of one window."""
        mel = np.stack([cnn14_log_mel(prepare_for_cnn14(wave)) for wave in waves])
        _, tags = encode_cnn14(self.tagger, jnp.asarray(mel, jnp.float32))
        logits = np.asarray(tags, np.float32)
        return 1 / (1 + np.exp(-logits[:, [CLASSES[name] for name in self.veto]]))

    def choose(self, windows: Sequence[Made]) -> Choice:
        """Return which candidate is nearest over all windows of a video.

        Those in which a class of the veto is heard in any window are out, unless all are.

        Args:
            windows: of each window its sounds `[N, A]` and its LOA `[L, E]`.
        """
        found = [self.errors(np.asarray(w.waves), np.asarray(w.loa)) for w in windows]
        errors = np.mean(found, axis=0)
        if not self.veto:
            return Choice(int(np.argmin(errors)), errors.tolist())
        chances = np.max([self.heard(np.asarray(w.waves)) for w in windows], axis=0)
        out = (chances >= CERTAIN).any(axis=1)
        likeliest = [self.veto[k] for k in chances.argmax(axis=1)]
        vetoed = [name if is_out else "" for name, is_out in zip(likeliest, out, strict=True)]
        ranked = np.where(out & ~out.all(), np.inf, errors)
        return Choice(int(np.argmin(ranked)), errors.tolist(), vetoed)


@jax.jit
def _errors(
    audiomae: AudioMAE, mapper: Mapper, fbank: Float[Array, "N T M"], loa: Float[Array, "1 L E"]
) -> Float[Array, " N"]:
    heard = jnp.asarray(mapper.config.loa.pooled(encode_audiomae(audiomae, fbank)))
    difference = mapper.standardise(heard.astype(jnp.float32)) - mapper.standardise(loa)
    return jnp.mean(jnp.square(difference.astype(jnp.float32)), axis=(1, 2))
