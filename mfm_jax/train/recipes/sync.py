"""Train an adapter with which a frozen UNet sees when.

The released AudioLDM2 reads a token of LOA for 1.28 s. Here it goes on to read that, with all of
its weights as they are, and an adapter beside it reads the video encoders.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.features import SOUND_ENCODERS
from mfm_jax.data.loader import Element
from mfm_jax.diffusion import Schedule
from mfm_jax.errors import SettingError
from mfm_jax.mapper import Streams
from mfm_jax.models.adapters import (
    AdaptedUNet,
    Adapter,
    AdapterConfig,
    build_adapter,
    without_video,
)
from mfm_jax.models.audiomae import LOA
from mfm_jax.models.text import EmptyText, EmptyTextConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.runtime.config import later
from mfm_jax.train.recipe import check_shares
from mfm_jax.train.recipes.adapter import AdapterRecipe
from mfm_jax.train.recipes.features import text_config
from mfm_jax.train.recipes.mapper import take
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
class SyncRecipe(AdapterRecipe, DenoisingRecipe):
    """Train an adapter behind the bundle's UNet.

    The UNet reads LOA of the true sound, with noise, on the grid of the bundle's mapper. The
    optimizer's `lr_multipliers` must be `ONLY_ADAPTER`.
    """

    # Share of clips without LOA that keep their video. What sounds must then be read off the video,
    # and with its moment, where LOA would have told it of a whole token.
    video_only_prob: float = later(0.0)
    init_from: str = later("")  # adapter: the bundle's, as `SyncStartRecipe` leaves it

    loaded = ("unet.*", "text.*")

    def __post_init__(self) -> None:
        check_shares(self, "uncond_prob", "noise_prob", "video_only_prob")
        if self.init_from not in ("", "adapter"):
            raise SettingError(f"recipe.init_from is adapter or empty, not {self.init_from!r}")

    def check(self, workdir: Path) -> None:
        super().check(workdir)
        if not self.init_from:
            return
        if "adapter" not in self._bundle.entries:
            raise SettingError(f"recipe.init_from: bundle {self.bundle} has no adapter")
        if (found := self._bundle.config("adapter")) != self.network:
            raise SettingError(
                f"recipe.init_from: the adapter of {self.bundle} is {found}, that of the recipe is "
                f"{self.network}"
            )

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the UNet was trained with."""
        return self._bundle.settings.schedule

    @property
    def loa(self) -> LOA:
        """The grid of LOA that the UNet reads."""
        return self._mapper.loa

    @property
    def reads(self) -> tuple[str, ...]:
        return (*self.network.streams, *SOUND_ENCODERS)

    @property
    def expects(self) -> dict[str, Any]:
        return {**super().expects, "grid": list(self.loa.grid)}

    def read(self, element: Element) -> Element:
        return {**super().read(element), **take(element, ("audiomae",))}

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        rows, columns = self.loa.grid
        tokens = 1 + rows * columns, self._bundle.config("audiomae").width
        return {**super().element_spec(), "audiomae": jax.ShapeDtypeStruct(tokens, jnp.float16)}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """The bundle's UNet and empty text, their weights still to come, and a new adapter."""
        text = text_config(self._bundle)
        return UNetAndAdapter(self._bundle.config("unet"), self.network, text, rngs=rngs)

    def warm_start(self, module: UNetAndAdapter, dataset: Any) -> UNetAndAdapter:
        """Take over the bundle's UNet, and its adapter if `init_from` says so."""
        module.unet = self._bundle.load("unet", jnp.float32)
        if module.text is not None:
            module.text = self._bundle.load("text", jnp.float32)
        if self.init_from:
            module.adapter = self._bundle.load("adapter", jnp.float32)
        return module

    def loss(
        self, module: UNetAndAdapter, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        spoil_key, stream_key, *keys = jax.random.split(key, 4)
        true = jnp.asarray(self.loa.pooled(batch["audiomae"].astype(jnp.float32)))
        loa, blank = self.spoil(true, spoil_key)
        if self.video_only_prob:
            drawn = jax.random.uniform(jax.random.fold_in(spoil_key, 1), (len(loa), 1, 1))
            loa = jnp.where(drawn < self.video_only_prob, 0.0, loa)
        streams = without_video(self.streams(batch, stream_key), blank)
        seconds = jnp.asarray(self.loa.times())

        def denoise(noised: Array, t: Array) -> Array:
            return module(noised, t, loa, seconds, streams)

        return self.denoising(denoise, self.schedule, batch["latents"], keys), {}

    def finish(self, module: UNetAndAdapter, workdir: Path, command: str) -> Path:
        started = (self.init_from,) if self.init_from else ()
        trained_with = ("audiomae", "vae", "unet", *started)
        return self.write_adapter(module.adapter, workdir, command, trained_with)
