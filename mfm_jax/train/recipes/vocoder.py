"""HiFi-GAN without its discriminators: log-mels at several resolutions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.decoded import prepared_wave
from mfm_jax.data.loader import Element
from mfm_jax.media.audio import log_mel, mel_magnitudes
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.train.recipes.decoded import DecodedRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float

RESOLUTIONS = ((1024, 160, 64), (512, 128, 48), (256, 64, 32), (128, 32, 16), (64, 16, 8))
"""Window and hop in samples, and bins, of the log-mels that are compared; the first is AudioLDM2's.

Bins, and not frequencies: which frequency in a bin sounds is not known from a mel, and from a loss
that asks for it a network learns to leave the tone out."""

QUIET = 1e-3
"""What is not heard is added to the magnitudes of the first resolution before the logarithm, and
to others as their windows are shorter. A maximum instead would have no gradient below, and networks
that fell silent early on never learned to make a tone."""

SAMPLE = 16
"""Clips on which the loudness is measured."""


@dataclass(frozen=True)
class VocoderRecipe(DecodedRecipe):
    """L1 between log-mels of short pieces."""

    network: VocoderConfig = field(default_factory=VocoderConfig.tiny)
    segment: int = 32  # mel frames of a piece in training

    def read(self, element: Element) -> Element:
        wave = prepared_wave(element)
        return {"wave": wave, "mel": log_mel(wave).astype(np.float16)}

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """Cut a piece of a clip: the loudest one of three, since clips are mostly silent."""
        hop, length = self.network.hop, self.segment
        starts = rng.integers(0, len(element["mel"]) - length + 1, 3)
        pieces = [element["wave"][s * hop : (s + length) * hop] for s in starts]
        best = int(np.argmax([np.abs(piece).sum() for piece in pieces]))
        mel = element["mel"][starts[best] : starts[best] + length]
        return {"wave": pieces[best], "mel": mel}

    def eval_transform(self, element: Element, rng: np.random.Generator) -> Element:
        return element

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Vocoder(self.network, rngs=rngs)

    def warm_start(self, module: Vocoder, dataset: Any) -> Vocoder:
        """Let the network be as loud as the clips from the first step on."""
        count = min(SAMPLE, len(dataset))
        clips = [dataset[i] for i in range(count)]
        made = module(jnp.asarray(np.stack([clip["mel"] for clip in clips]), jnp.float32))
        true = np.stack([clip["wave"] for clip in clips])
        kernel = module.conv_out.kernel
        kernel[...] = kernel[...] * (true.std() / made.std())
        return module

    def loss(self, module: Vocoder, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        true = batch["wave"]
        made = module(batch["mel"].astype(jnp.float32))[:, : true.shape[1]]
        distances = [mel_loss(made, true, *sizes) for sizes in RESOLUTIONS]
        return jnp.stack(distances).mean(), {"mel": distances[0]}

    def finish(self, module: Vocoder, workdir: Path, command: str) -> Path:
        return self.write_component("vocoder", self.network, module, workdir, command).path


def mel_loss(
    made: Float[Array, "B A"], true: Float[Array, "B A"], window: int, hop: int, mels: int
) -> Float[Array, ""]:
    """Return the mean absolute difference of log-mels, in nats."""

    def loud(wave: Array) -> Array:
        magnitudes = mel_magnitudes(wave, mels=mels, n_fft=window, hop=hop)
        return jnp.log(magnitudes + QUIET * window / 1024)

    return jnp.abs(jax.vmap(loud)(made) - jax.vmap(loud)(true)).mean()
