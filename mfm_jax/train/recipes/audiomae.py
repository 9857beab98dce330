"""AudioMAE: fill in masked patches of the filter bank."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.decoded import prepared_wave
from mfm_jax.data.loader import Element
from mfm_jax.media.audio import kaldi_fbank
from mfm_jax.models.audiomae import (
    AudioMAE,
    AudioMAEConfig,
    AudioMAEDecoder,
    masked_patches,
    patchify,
    random_visible,
)
from mfm_jax.train.recipes.decoded import DecodedRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array


class MaskedAutoencoder(nnx.Module):
    """The encoder that is kept and the decoder that is not."""

    def __init__(self, config: AudioMAEConfig, *, rngs: nnx.Rngs) -> None:
        self.encoder = AudioMAE(config, rngs=rngs)
        self.decoder = AudioMAEDecoder(config, rngs=rngs)


@dataclass(frozen=True)
class AudioMAERecipe(DecodedRecipe):
    """Masked autoencoding. A deviation: the released AudioMAE normalises each target patch.

    Patches of silence would then be blown up to the codec's noise.
    """

    network: AudioMAEConfig = field(default_factory=AudioMAEConfig.tiny)
    mask_ratio: float = 0.75  # share of the patches

    def read(self, element: Element) -> Element:
        fbank = kaldi_fbank(prepared_wave(element), self.network.frames)
        return {"fbank": fbank.astype(np.float16)}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return MaskedAutoencoder(self.network, rngs=rngs)

    def loss(self, module: Any, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        fbank, patches = batch["fbank"].astype(jnp.float32), self.network.patches
        visible = random_visible(key, len(fbank), patches, self.mask_ratio)
        predicted = module.decoder(module.encoder.encode_visible(fbank, visible), visible)
        error = (predicted - patchify(fbank, self.network.patch)) ** 2
        masked = masked_patches(visible, patches)
        return jnp.mean(error, where=masked[:, :, None]), {}

    def finish(self, module: Any, workdir: Path, command: str) -> Path:
        return self.write_component("audiomae", self.network, module.encoder, workdir, command).path
