"""HiFi-GAN on the Foley world, without its discriminators: spectra at several resolutions."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.audio import log_mel
from mfm_jax.data.loader import Element
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.train.foley import MediaRecipe, prepared_wave
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float

RESOLUTIONS = ((64, 16), (256, 64), (512, 128))
"""Window and hop in samples of the spectra that are compared; the log-mel's window is 1024."""

QUIET = 1e-3
"""What is not heard is added to all magnitudes before the logarithm: it is a mel's magnitude, and
a quarter of a sine's amplitude. A maximum instead would have no gradient below, and networks that
fell silent early on never learned to make a tone."""

SAMPLE = 16
"""Clips that the loudness is measured on."""


@dataclass(frozen=True)
class VocoderRecipe(MediaRecipe):
    """L1 between the log-spectra and log-mels of short pieces."""

    network: VocoderConfig = field(default_factory=VocoderConfig.tiny)
    frames: int = 64  # mel frames of a piece in training
    mel: float = 1.0  # weight of the log-mels beside the spectra

    def read(self, element: Element) -> Element:
        wave = prepared_wave(element)
        return {"wave": wave, "mel": log_mel(wave).astype(np.float16)}

    def transform(self, element: Element, rng: np.random.Generator) -> Element:
        """A piece of a clip: the louder one of two, since clips are mostly silent."""
        hop, length = self.network.hop, self.frames
        starts = rng.integers(0, len(element["mel"]) - length + 1, 2)
        pieces = [element["wave"][s * hop : (s + length) * hop] for s in starts]
        best = int(np.argmax([np.abs(piece).sum() for piece in pieces]))
        mel = element["mel"][starts[best] : starts[best] + length]
        return {"wave": pieces[best], "mel": mel}

    def still(self, element: Element, rng: np.random.Generator) -> Element:
        return element

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return Vocoder(self.network, rngs=rngs)

    def begin(self, module: Vocoder, source: Any) -> Vocoder:
        """Let the network be as loud as the clips from the first step on."""
        count = min(SAMPLE, len(source))
        clips = [source[i] for i in range(count)]
        made = module(jnp.asarray(np.stack([clip["mel"] for clip in clips]), jnp.float32))
        true = np.stack([clip["wave"] for clip in clips])
        kernel = module.conv_out.kernel
        kernel[...] = kernel[...] * (true.std() / made.std())
        return module

    def loss(self, module: Vocoder, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        true = batch["wave"]
        made = module(batch["mel"].astype(jnp.float32))[:, : true.shape[1]]
        mels = [jax.vmap(log_mel)(wave) for wave in (made, true)]
        mel = jnp.abs(jnp.subtract(*(jnp.log(jnp.exp(mel) + QUIET) for mel in mels))).mean()
        distances = [spectral_distance(made, true, *sizes) for sizes in RESOLUTIONS]
        spectra = jnp.stack(distances).mean()
        return spectra + self.mel * mel, {"mel": mel, "spectra": spectra}

    def finish(self, module: Vocoder, workdir: Path, command: str) -> None:
        self.put("vocoder", self.network, module, command)


def spectral_distance(
    made: Float[Array, "B A"], true: Float[Array, "B A"], window: int, hop: int
) -> Float[Array, ""]:
    """L1 of log-magnitudes, and the spectral convergence of the batch, thrice.

    The first hears everything alike, so that a network content with it makes the noise of a contact
    and leaves out its tones, which are few bins. The second is what is wrong in the loud ones:
    the norm of the difference over the norm of the truth (Parallel WaveGAN, arXiv 1910.11480). It
    is of all pieces together, or those that are almost silent would weigh the most.
    """
    made, true = (_magnitudes(wave, window, hop) for wave in (made, true))
    quiet = QUIET * window / 8
    logs = jnp.abs(jnp.log(made + quiet) - jnp.log(true + quiet))
    wrong, there = (jnp.linalg.norm(x.reshape(-1)) for x in (made - true, true))
    return logs.mean() + 3 * wrong / jnp.maximum(there, quiet * np.sqrt(true.size))


def _magnitudes(wave: Float[Array, "B A"], window: int, hop: int) -> Float[Array, "B T bins"]:
    starts = np.arange(0, wave.shape[1] - window + 1, hop)
    pieces = wave[:, starts[:, None] + np.arange(window)[None]]
    spectrum = jnp.fft.rfft(pieces * jnp.asarray(np.hanning(window), wave.dtype)[None, None])
    # The gradient of abs is not defined at 0.
    return jnp.sqrt(spectrum.real**2 + spectrum.imag**2 + 1e-12)
