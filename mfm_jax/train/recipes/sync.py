"""Train an adapter with which a frozen UNet hears when, from sound alone.

The released AudioLDM2 reads a token of LOA for 1.28 s. Here it goes on to read that, with all of
its weights as they are, and an adapter beside it reads LOA's second, finer grid. Both are those of
the true sound, so no video is needed; in use, the mapper predicts both.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Component, write_bundle
from mfm_jax.diffusion import Schedule
from mfm_jax.errors import SettingError
from mfm_jax.models.adapters import (
    AdaptedUNet,
    Adapter,
    AdapterConfig,
    build_adapter,
)
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.text import EmptyText, EmptyTextConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.storage.hub import bundle_path
from mfm_jax.train.recipes.features import latent_shape, text_config
from mfm_jax.train.recipes.unet import DenoisingRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float, Int

ONLY_ADAPTER: tuple[tuple[str, float | None], ...] = (("adapter.*", 1.0), ("*", None))
"""`OptimizerConfig.lr_multipliers` of this recipe: everything but the adapter is frozen."""


class UNetAndAdapter(nnx.Module):
    """A UNet with its adapter; `text` is there only if the UNet reads text as well."""

    def __init__(
        self,
        unet: UNetConfig,
        adapter: AdapterConfig,
        text: EmptyTextConfig | None,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        self.unet = UNet(unet, rngs=rngs)
        self.adapter: Adapter = build_adapter(adapter, rngs=rngs)
        self.text = None if text is None else EmptyText(text, rngs=rngs)

    def __call__(
        self,
        noised: Float[Array, "B H W C"],
        t: Int[Array, " B"],
        loa: Float[Array, "B L E"],
        seconds: Float[Array, " L"],
    ) -> Float[Array, "B H W C"]:
        """Return the output for `noised` latents, conditioned on LOA of both grids."""
        contexts = (loa,) if self.text is None else (loa, self.text(len(loa)))
        return AdaptedUNet(self.unet, self.adapter)(noised, t, contexts, context_seconds=seconds)


@dataclass(frozen=True)
class SyncRecipe(DenoisingRecipe):
    """Train an adapter of the bundle's UNet; the workdir becomes a bundle that has it.

    The optimizer's `lr_multipliers` must be `ONLY_ADAPTER`.
    """

    bundle: str = "runs/tiny/bundle"
    kind: str = "features"  # or "attention": what the adapter adds (`mfm_jax.models.adapters`)
    width: int = 256  # inside the adapter
    # Patches of AudioMAE in a token along (time, mel): what the UNet was trained on, and the second
    # grid that the adapter reads.
    pool: tuple[int, int] = (8, 8)
    fine: tuple[int, int] = (1, 8)

    loaded = ("unet.*", "text.*")

    @cached_property
    def _bundle(self) -> Bundle:
        return Bundle.open(bundle_path(self.bundle))

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the UNet was trained with."""
        return self._bundle.settings.schedule

    @cached_property
    def network(self) -> AdapterConfig:
        """The sizes of the adapter.

        Raises:
            SettingError: they do not go together.
        """
        audiomae, unet = self._bundle.config("audiomae"), self._bundle.config("unet")
        columns = latent_shape(self._bundle)[1]
        grid = audiomae.frames // audiomae.patch, audiomae.mels // audiomae.patch
        try:
            loa = LOA(grid, self.pool, fine=self.fine)
            return AdapterConfig(unet, unet.contexts[0], self.width, self.kind, columns, loa)
        except ValueError as error:
            raise SettingError(f"recipe: {error}") from None

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows, columns = self.network.loa.grid
        tokens = 1 + rows * columns, self._bundle.config("audiomae").width
        return {
            "audiomae": jax.ShapeDtypeStruct(tokens, jnp.float16),
            "latents": jax.ShapeDtypeStruct(latent_shape(self._bundle), jnp.float16),
        }

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """The bundle's UNet and empty text, their weights still to come, and a new adapter."""
        text = text_config(self._bundle)
        return UNetAndAdapter(self._bundle.config("unet"), self.network, text, rngs=rngs)

    def warm_start(self, module: UNetAndAdapter, dataset: Any) -> UNetAndAdapter:
        """Take over the bundle's UNet."""
        module.unet = self._bundle.load("unet", jnp.float32)
        if module.text is not None:
            module.text = self._bundle.load("text", jnp.float32)
        return module

    def loss(
        self, module: UNetAndAdapter, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        spoil_key, *keys = jax.random.split(key, 3)
        grids = module.adapter.config.loa
        loa = self.spoil(
            jnp.asarray(grids.pooled(batch["audiomae"].astype(jnp.float32))), spoil_key
        )
        seconds = jnp.asarray(grids.times())

        def denoise(noised: Array, t: Array) -> Array:
            return module(noised, t, loa, seconds)

        return self.denoising(denoise, self.schedule, batch["latents"], keys), {}

    def finish(self, module: UNetAndAdapter, workdir: Path, command: str) -> Path:
        """Make the workdir a bundle; its other networks come from the recipe's bundle."""
        source = self.provenance(command, ("audiomae", "vae", "unet"), self._bundle)
        adapter = Component(module.adapter.config, module.adapter, source)
        write_bundle(workdir, {"adapter": adapter}, base=self._bundle.path)
        return workdir
