"""Train an adapter with which a frozen UNet sees when.

The released AudioLDM2 reads a token of LOA for 1.28 s. Here it goes on to read that, with all of
its weights as they are, and an adapter beside it reads the video encoders.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Component, write_bundle
from mfm_jax.data.features import SOUND_ENCODERS
from mfm_jax.data.loader import Element
from mfm_jax.diffusion import Schedule
from mfm_jax.errors import SettingError
from mfm_jax.mapper import MapperConfig, Streams
from mfm_jax.models.adapters import (
    AdaptedUNet,
    Adapter,
    AdapterConfig,
    build_adapter,
    without_video,
)
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.streams import networks_of
from mfm_jax.models.text import EmptyText, EmptyTextConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.storage.hub import bundle_path
from mfm_jax.train.recipes.features import latent_shape, text_config
from mfm_jax.train.recipes.mapper import each_stream, read_streams, stream_specs, streams_of
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
        streams: Streams,
    ) -> Float[Array, "B H W C"]:
        """Return the output for `noised` latents, conditioned on LOA and video."""
        contexts = (loa,) if self.text is None else (loa, self.text(len(loa)))
        unet = AdaptedUNet(self.unet, self.adapter)
        return unet(noised, t, contexts, context_seconds=seconds, streams=streams)


@dataclass(frozen=True)
class SyncRecipe(DenoisingRecipe):
    """Train an adapter of the bundle's UNet; the workdir becomes a bundle that has it.

    The UNet reads LOA of the true sound, with noise, on the grid of the bundle's mapper. The
    optimizer's `lr_multipliers` must be `ONLY_ADAPTER`.
    """

    bundle: str = "runs/tiny/stage2"
    kind: str = "attention"  # or "features": what the adapter adds (`mfm_jax.models.adapters`)
    width: int = 256  # inside the adapter
    # (stream, tokens in a window, their width) that the adapter reads; empty: as the mapper.
    encoders: tuple[tuple[str, int, int], ...] = ()
    stems: tuple[str, ...] = ()  # of these streams, if `encoders` is given

    loaded = ("unet.*", "text.*")

    @cached_property
    def _bundle(self) -> Bundle:
        return Bundle.open(bundle_path(self.bundle))

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the UNet was trained with."""
        return self._bundle.settings.schedule

    @property
    def loa(self) -> LOA:
        """The grid of LOA that the UNet reads."""
        return self._mapper.loa

    @property
    def _mapper(self) -> MapperConfig:
        return self._bundle.config("mapper")

    @cached_property
    def network(self) -> AdapterConfig:
        """The sizes of the adapter.

        Raises:
            SettingError: they do not go together.
        """
        mapper = self._mapper
        try:
            return AdapterConfig(
                self._bundle.config("unet"),
                self.encoders or each_stream(mapper.encoders),
                self.kind,
                self.width,
                latent_shape(self._bundle)[1],
                mapper.timechat,
                self.stems if self.encoders else mapper.stems,
            )
        except ValueError as error:
            raise SettingError(f"recipe: {error}") from None

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.network.streams, *SOUND_ENCODERS)

    @property
    def expects(self) -> dict[str, Any]:
        return {"timechat": self.network.timechat, "grid": list(self.loa.grid)}

    def read(self, element: Element) -> Element:
        return {**super().read(element), **read_streams(element, self.network.encoders)}

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows, columns = self.loa.grid
        tokens = 1 + rows * columns, self._bundle.config("audiomae").width
        return {
            **stream_specs(self.network.encoders),
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
        spoil_key, stream_key, *keys = jax.random.split(key, 4)
        true = jnp.asarray(self.loa.pooled(batch["audiomae"].astype(jnp.float32)))
        loa, blank = self.spoil(true, spoil_key)
        streams = without_video(self.streams(batch, stream_key), blank)
        seconds = jnp.asarray(self.loa.times())

        def denoise(noised: Array, t: Array) -> Array:
            return module(noised, t, loa, seconds, streams)

        return self.denoising(denoise, self.schedule, batch["latents"], keys), {}

    def streams(self, batch: Batch, key: Array) -> Streams:
        """Return what the adapter reads of a batch."""
        del key
        return streams_of(batch, self.network.streams)

    def finish(self, module: UNetAndAdapter, workdir: Path, command: str) -> Path:
        """Make the workdir a bundle; its other networks come from the recipe's bundle."""
        components = ("audiomae", "vae", "unet", *networks_of(self.network.streams))
        source = self.provenance(command, components, self._bundle)
        adapter = Component(module.adapter.config, module.adapter, source)
        write_bundle(workdir, {"adapter": adapter}, base=self._bundle.path)
        return workdir
