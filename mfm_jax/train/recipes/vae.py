"""The VAE: log-mels through a bottleneck and back."""

from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.decoded import prepared_wave
from mfm_jax.data.loader import Element, batches
from mfm_jax.media.audio import log_mel
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.train.recipes.decoded import DecodedRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array

SAMPLE = 256
"""Clips on which the spread of mels and latents is measured."""


@dataclass(frozen=True)
class VAERecipe(DecodedRecipe):
    """L1 and a little KL on raw log-mels, as the released VAE takes them."""

    network: VAEConfig = field(default_factory=VAEConfig.tiny)
    kl_weight: float = 1e-4  # of the KL divergence per latent, which bounds the latents' spread

    def read(self, element: Element) -> Element:
        return {"mel": log_mel(prepared_wave(element)).astype(np.float16)[..., None]}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return VAE(self.network, rngs=rngs)

    def warm_start(self, module: VAE, dataset: Any) -> VAE:
        """Let the first layer remove the mean and spread of the mels, and the last restore them.

        Raw log-mels lie near -9; without this the network would learn that first.
        """
        count = min(SAMPLE, len(dataset))
        mels = np.stack([dataset[i]["mel"] for i in range(count)], dtype=np.float32)
        mean, std = float(mels.mean()), float(mels.std())
        first, last = module.encoder.conv_in, module.decoder.conv_out
        assert first.bias is not None
        assert last.bias is not None
        kernel = first.kernel[...] / std
        first.kernel[...] = kernel
        first.bias[...] = first.bias[...] - mean * kernel.sum(axis=(0, 1, 2))
        last.kernel[...] = last.kernel[...] * std
        last.bias[...] = last.bias[...] + mean
        return module

    def loss(self, module: VAE, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        mel = batch["mel"].astype(jnp.float32)
        mean, logvar = module.encode(mel)
        latents = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
        error = jnp.abs(module.decode(latents) - mel).mean()
        kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar)
        return error + self.kl_weight * kl, {"l1": error, "kl": kl}

    def finish(self, module: VAE, workdir: Path, command: str) -> Path:
        """Write the VAE with the scale that gives its latents unit spread."""
        dataset = self.prepare(workdir).train
        loader = batches(dataset, batch=32, seed=0, train=False)
        spread = float(np.std([_means(module, b["mel"]) for b in islice(loader, SAMPLE // 32)]))
        config = replace(self.network, scaling_factor=self.network.scaling_factor / spread)
        return self.write_component("vae", config, module, workdir, command).path


@partial(jax.jit)
def _means(module: VAE, mel: Array) -> Array:
    return module.encode(mel.astype(jnp.float32))[0]
