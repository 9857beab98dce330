"""The base of the recipes that train an adapter: its sizes, what it reads, and where it goes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Component, write_bundle
from mfm_jax.data.loader import Element
from mfm_jax.errors import SettingError
from mfm_jax.mapper import MapperConfig, Streams
from mfm_jax.models.adapters import Adapter, AdapterConfig
from mfm_jax.models.streams import networks_of
from mfm_jax.runtime.config import later
from mfm_jax.storage.hub import bundle_path
from mfm_jax.train.recipes.features import FeatureRecipe, latent_shape
from mfm_jax.train.recipes.mapper import (
    each_stream,
    read_streams,
    stream_specs,
    streams_of,
    take,
)
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array


@dataclass(frozen=True)
class AdapterRecipe(FeatureRecipe):
    """Train an adapter of the bundle's UNet; the workdir becomes a bundle that has it."""

    bundle: str = "runs/tiny/stage2"
    kind: str = "attention"  # or "features": what the adapter adds (`mfm_jax.models.adapters`)
    width: int = 256  # inside the adapter
    # (stream, tokens in a window, their width) that the adapter reads; empty: as the mapper.
    encoders: tuple[tuple[str, int, int], ...] = ()
    stems: tuple[str, ...] = ()  # of these streams, if `encoders` is given
    dilations: tuple[int, ...] = later((1, 1))  # of the convolutions of features, one each

    @cached_property
    def _bundle(self) -> Bundle:
        return Bundle.open(bundle_path(self.bundle))

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
                self.dilations,
            )
        except ValueError as error:
            raise SettingError(f"recipe: {error}") from None

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.network.streams, "vae")

    @property
    def expects(self) -> dict[str, Any]:
        return {"timechat": self.network.timechat}

    def read(self, element: Element) -> Element:
        return {**read_streams(element, self.network.encoders), **take(element, ("latents",))}

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        latents = jax.ShapeDtypeStruct(latent_shape(self._bundle), jnp.float16)
        return {**stream_specs(self.network.encoders), "latents": latents}

    def streams(self, batch: Batch, key: Array) -> Streams:
        """Return what the adapter reads of a batch."""
        del key
        return streams_of(batch, self.network.streams)

    def write_adapter(
        self, adapter: Adapter, workdir: Path, command: str, trained_with: Iterable[str]
    ) -> Path:
        """Make the workdir a bundle; its other networks come from the recipe's bundle.

        Args:
            trained_with: components of that bundle, beside the encoders that are read.
        """
        components = (*trained_with, *networks_of(self.network.streams))
        source = self.provenance(command, components, self._bundle)
        component = Component(adapter.config, adapter, source)
        write_bundle(workdir, {"adapter": component}, base=self._bundle.path)
        return workdir
