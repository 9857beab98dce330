"""Train the features of an adapter before a UNet uses them.

The loss of diffusion teaches an adapter slowly: most of it is noise that nothing predicts. Here the
features of each row predict that row of the clean latents, at a small part of the cost of a step
behind the UNet. `SyncRecipe` goes on from there with `init_from="adapter"`.
"""

from dataclasses import dataclass
from pathlib import Path

import jax
from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from mfm_jax.errors import SettingError
from mfm_jax.layers import linear
from mfm_jax.mapper import Streams
from mfm_jax.models.adapters import AdapterConfig, FeatureAdapter
from mfm_jax.train.recipes.adapter import AdapterRecipe
from mfm_jax.train.recipes.features import latent_shape
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float


class FeaturesAndHead(nnx.Module):
    """An adapter of features, and a head that predicts latents from them."""

    def __init__(self, config: AdapterConfig, channels: int, *, rngs: nnx.Rngs) -> None:
        self.adapter = FeatureAdapter(config, rngs=rngs)
        self.head = linear(config.width, config.columns * channels, ("embed", None), rngs=rngs)

    def __call__(self, streams: Streams, rows: int) -> Float[Array, "B {rows} W C"]:
        """Return the latents that the streams let expect."""
        features = self.adapter.features(streams, rows)
        made = self.head(jax.nn.silu(features))
        return rearrange(made, "b h (w c) -> b h w c", w=self.adapter.config.columns)


@dataclass(frozen=True)
class SyncStartRecipe(AdapterRecipe):
    """Train the features of an adapter to predict latents; it still adds nothing to the UNet.

    The workdir becomes the bundle with this adapter.
    """

    kind: str = "features"

    def __post_init__(self) -> None:
        if self.kind != "features":
            raise SettingError(f"recipe.kind is features here, not {self.kind!r}")

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        return FeaturesAndHead(self.network, latent_shape(self._bundle)[2], rngs=rngs)

    def loss(
        self, module: FeaturesAndHead, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        """Return the share of the latents' variance that is missed, over columns and channels."""
        latents = batch["latents"].astype(jnp.float32)
        made = module(self.streams(batch, key), latents.shape[1]).astype(jnp.float32)
        missed = jnp.mean((made - latents) ** 2, axis=(0, 1))
        return jnp.mean(missed / (latents.var(axis=(0, 1)) + 1e-6)), {}

    def finish(self, module: FeaturesAndHead, workdir: Path, command: str) -> Path:
        return self.write_adapter(module.adapter, workdir, command, ("vae",))
