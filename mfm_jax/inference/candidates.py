"""Several sounds of a video, of which the one is kept that is nearest to what was predicted.

The mapper predicts LOA from the video, and AudioMAE hears LOA in a sound. Their distance needs no
label and no text. It is the error that the mapper's training reports.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UsageError
from mfm_jax.inference.encoders import encode_audiomae
from mfm_jax.inference.pipeline import Made, VideoToAudio
from mfm_jax.mapper import Mapper
from mfm_jax.media.audio import RATE, kaldi_fbank, prepare_for_audiomae
from mfm_jax.models.audiomae import AudioMAE, pool_loa
from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class Judge:
    """Measures how far sounds are from what was predicted of their video."""

    audiomae: AudioMAE
    frames: int  # of AudioMAE's input
    mapper: Mapper
    samples: int  # of a window

    @classmethod
    def open(cls, bundle: Bundle, model: VideoToAudio, **how: Any) -> "Judge":
        """Load AudioMAE beside the networks of a model.

        Args:
            how: as `Bundle.load`.

        Raises:
            UsageError: the bundle has none.
        """
        if "audiomae" not in bundle.entries:
            raise UsageError(
                f"bundle {bundle.path} has no AudioMAE, which ranks candidates: convert it, or ask "
                "for one candidate"
            )
        return cls(
            bundle.load("audiomae", **how),
            bundle.config("audiomae").frames,
            model.networks.mapper,
            round(model.spec.seconds * RATE),
        )

    def errors(
        self, waves: Float[np.ndarray, "N A"], loa: Float[np.ndarray, "L E"]
    ) -> Float[np.ndarray, " N"]:
        """Return the mean squared error of the LOA of each sound, in standard deviations squared.

        Args:
            waves: sounds of one window.
            loa: what was predicted of it.
        """
        prepared = (prepare_for_audiomae(wave, self.samples) for wave in waves)
        fbank = np.stack([kaldi_fbank(wave, self.frames) for wave in prepared])
        return np.asarray(_errors(self.audiomae, self.mapper, jnp.asarray(fbank), loa[None]))

    def choose(self, windows: Sequence[Made]) -> tuple[int, list[float]]:
        """Return which candidate is nearest over all windows of a video, and all their errors.

        Args:
            windows: of each window its sounds `[N, A]` and its LOA `[L, E]`.
        """
        found = [self.errors(np.asarray(w.waves), np.asarray(w.loa)) for w in windows]
        errors = np.mean(found, axis=0)
        return int(np.argmin(errors)), errors.tolist()


@jax.jit
def _errors(
    audiomae: AudioMAE, mapper: Mapper, fbank: Float[Array, "N T M"], loa: Float[Array, "1 L E"]
) -> Float[Array, " N"]:
    grid = mapper.config.loa
    heard = jnp.asarray(pool_loa(encode_audiomae(audiomae, fbank), grid.grid, grid.pool))
    difference = mapper.standardise(heard.astype(jnp.float32)) - mapper.standardise(loa)
    return jnp.mean(jnp.square(difference.astype(jnp.float32)), axis=(1, 2))
