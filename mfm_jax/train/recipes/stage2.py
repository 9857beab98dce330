"""The mapper's second stage: the diffusion loss, through the frozen UNet into the mapper.

Stage 1 weighs every number of LOA alike. Here LOA is right as far as the UNet makes the right sound
of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from typing import Any, NamedTuple

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle, Component, Source
from mfm_jax.bundle.adapted import adapter_of
from mfm_jax.data.loader import Element, batches
from mfm_jax.diffusion import Schedule
from mfm_jax.inference.pipeline import SoundNetworks
from mfm_jax.mapper import MapperConfig, Streams, build_mapper
from mfm_jax.models.adapters import (
    AdaptedUNet,
    AdapterConfig,
    build_adapter,
    seeing,
    without_video,
)
from mfm_jax.models.streams import networks_of
from mfm_jax.models.text import EmptyText, EmptyTextConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.storage.hub import bundle_path
from mfm_jax.train.lora import LoRA
from mfm_jax.train.losses import mse
from mfm_jax.train.recipe import check_shares, mean_metrics
from mfm_jax.train.recipes.features import latent_shape, text_config
from mfm_jax.train.recipes.mapper import (
    LOARecipe,
    check_width,
    each_stream,
    on_mesh,
    streams_of,
    take,
)
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Bool, Float, Int

ONLY_MAPPER: tuple[tuple[str, float | None], ...] = (("mapper.*", 1.0), ("*", None))
"""`OptimizerConfig.lr_multipliers` of this stage: the bundle gets the mapper alone, so the rest
is frozen."""
WITH_LORA: tuple[tuple[str, float | None], ...] = (("lora.*", 1.0), *ONLY_MAPPER)
"""The same where LoRA factors of the UNet are trained as well."""


class MapperAndUNet(nnx.Module):
    """The mapper and the UNet that reads its LOA.

    `text` is there only if the UNet reads text as well, `adapter` only if it has one, and `lora`
    only if its own weights change.
    """

    def __init__(
        self,
        mapper: MapperConfig,
        unet: UNetConfig,
        text: EmptyTextConfig | None,
        *,
        adapter: AdapterConfig | None = None,
        lora: Callable[..., LoRA] | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        self.mapper = build_mapper(mapper, rngs=rngs)
        self.unet = UNet(unet, rngs=rngs)
        self.text = None if text is None else EmptyText(text, rngs=rngs)
        self.adapter = None if adapter is None else build_adapter(adapter, rngs=rngs)
        self.lora = None if lora is None else lora(self.unet, rngs=rngs)

    def merged(self) -> UNet:
        """Return the UNet with its LoRA factors added."""
        return self.unet if self.lora is None else self.lora(self.unet)

    def adapted(self) -> UNet | AdaptedUNet:
        """Return the UNet as it is run: with LoRA factors and adapter."""
        unet = self.merged()
        return unet if self.adapter is None else AdaptedUNet(unet, self.adapter)

    def __call__(
        self,
        noised: Float[Array, "B H W C"],
        t: Int[Array, " B"],
        loa: Float[Array, "B L E"],
        streams: Streams | None = None,
    ) -> Float[Array, "B H W C"]:
        """Return the UNet's output for `noised` latents at time steps `t`, conditioned on `loa`.

        Args:
            streams: what the adapter reads, if there is one.
        """
        contexts = (loa,) if self.text is None else (loa, self.text(len(loa)))
        seconds = jnp.asarray(self.mapper.config.loa.times())
        unet = seeing(self.adapted(), streams)
        return unet(noised, t, contexts, context_seconds=seconds)


class Draws(NamedTuple):
    """The random draws of a step, for each clip."""

    t: Int[Array, " B"]
    noise: Float[Array, "B H W C"]
    true: Bool[Array, " B"]  # the UNet reads the true LOA
    unconditional: Bool[Array, " B"]  # the UNet reads zeros, whatever `true` says


@dataclass(frozen=True)
class Stage2Recipe(LOARecipe):
    """Train the bundle's mapper further, through the bundle's UNet and its noise schedule.

    The mapper generates as it does in use, on its own output, with gradients through all of it.
    The optimizer's `lr_multipliers` must be `ONLY_MAPPER`, or freeze the UNet in another way;
    `WITH_LORA` if `lora_rank` is not 0. Then the bundle gets the UNet as well.
    """

    bundle: str = "runs/tiny/mapper"
    true_loa_prob: float = 0.25  # share of clips whose true LOA the UNet reads, as in AudioLDM2
    uncond_prob: float = 0.1  # share of clips whose LOA the UNet reads as zeros, as in AudioLDM2
    loa_weight: float = 1.0  # of the squared error of LOA, which holds the mapper to stage 1
    # Rank of the UNet's LoRA factors; 0 leaves the UNet as it is. A finer grid of LOA than the UNet
    # was trained on needs some.
    lora_rank: int = 0
    lora_targets: tuple[str, ...] = ("*.attn2.?.kernel",)  # patterns of names of matrices
    lora_scale: float = 1.0

    loaded = ("mapper.*", "unet.*", "adapter.*", "text.*")

    def __post_init__(self) -> None:
        check_shares(self, "true_loa_prob", "uncond_prob")

    @cached_property
    def _bundle(self) -> Bundle:
        return Bundle.open(bundle_path(self.bundle))

    @cached_property
    def mapper(self) -> MapperConfig:
        return self._bundle.config("mapper")

    @cached_property
    def _adapter(self) -> AdapterConfig | None:
        return adapter_of(self._bundle)

    @property
    def encoders(self) -> tuple[tuple[str, int, int], ...]:
        """The streams that the mapper or the adapter read, and their sizes."""
        more = () if self._adapter is None else self._adapter.encoders
        return each_stream((*self.mapper.encoders, *more))

    @property
    def reads(self) -> tuple[str, ...]:
        return (*super().reads, "vae")

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the UNet was trained with."""
        return self._bundle.settings.schedule

    def read(self, element: Element) -> Element:
        return {**super().read(element), **take(element, ("latents",))}

    def element_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        latents = jax.ShapeDtypeStruct(latent_shape(self._bundle), jnp.float16)
        return {**super().element_spec(), "latents": latents}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        """The bundle's mapper, UNet and empty text, their weights still to come.

        Raises:
            SettingError: the UNet reads LOA of another width.
        """
        check_width(self._bundle, self.mapper)
        lora = partial(LoRA, patterns=self.lora_targets, rank=self.lora_rank, scale=self.lora_scale)
        return MapperAndUNet(
            self.mapper,
            self._bundle.config("unet"),
            text_config(self._bundle),
            adapter=self._adapter,
            lora=lora if self.lora_rank else None,
            rngs=rngs,
        )

    def warm_start(self, module: MapperAndUNet, dataset: Any) -> MapperAndUNet:
        """Take over the bundle's networks."""
        module.mapper = self._bundle.load("mapper", jnp.float32)
        module.unet = self._bundle.load("unet", jnp.float32)
        if module.text is not None:
            module.text = self._bundle.load("text", jnp.float32)
        if module.adapter is not None:
            module.adapter = self._bundle.load("adapter", jnp.float32)
        return module

    def draw(self, batch: Batch, key: Array) -> Draws:
        """Draw what the loss of a batch needs."""
        keys = jax.random.split(key, 4)
        shape = batch["latents"].shape
        return Draws(
            jax.random.randint(keys[0], shape[:1], 0, self.schedule.train_steps),
            jax.random.normal(keys[1], shape),
            jax.random.uniform(keys[2], shape[:1]) < self.true_loa_prob,
            jax.random.uniform(keys[3], shape[:1]) < self.uncond_prob,
        )

    def loss(
        self, module: MapperAndUNet, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        draws, true = self.draw(batch, key), batch["loa"]
        made = module.mapper.generate(self.streams(batch)).astype(jnp.float32)
        loa = jnp.where(draws.true[:, None, None], true, made)
        loa = jnp.where(draws.unconditional[:, None, None], 0.0, loa)
        diffusion = self.diffusion(module, batch, loa, draws, draws.unconditional)
        error = mse(module.mapper.standardise(made), module.mapper.standardise(true))
        return diffusion + self.loa_weight * error, {"diffusion": diffusion, "mse": error}

    def diffusion(
        self,
        module: MapperAndUNet,
        batch: Batch,
        loa: Float[Array, "B L E"],
        draws: Draws,
        blank: Bool[Array, " B"] | None = None,
    ) -> Float[Array, ""]:
        """Return the squared error of the UNet's output where it reads `loa`.

        Args:
            blank: clips whose video its adapter does not see, if it has one; none if not given.
        """
        latents = batch["latents"].astype(jnp.float32)
        noised = self.schedule.add_noise(latents, draws.noise, draws.t)
        video = None
        if self._adapter is not None:
            nothing = jnp.zeros_like(draws.t, bool) if blank is None else blank
            video = without_video(streams_of(batch, self._adapter.streams), nothing)
        output = module(noised, draws.t, loa, video).astype(jnp.float32)
        return jnp.mean((output - self.schedule.target(latents, draws.noise, draws.t)) ** 2)

    def evaluate(self, module: MapperAndUNet, dataset: Any, batch: int) -> dict[str, float]:
        """Return the LOA errors of stage 1, and the diffusion loss with always the same noise.

        In `diffusion` the UNet reads the mapper's LOA, in `diffusion_true` the true LOA.
        """
        keys = map(jax.random.key, count())
        loader = batches(dataset, batch=batch, seed=0, train=False)
        losses = mean_metrics(lambda b: _diffusion(self, module, b, next(keys)), loader)
        return {**super().evaluate(module.mapper, dataset, batch), **losses}

    def sound_networks(self, module: MapperAndUNet, bundle: Bundle) -> SoundNetworks:
        vae, vocoder = (on_mesh(bundle, name) for name in ("vae", "vocoder"))
        return SoundNetworks(module.mapper, module.adapted(), vae, vocoder, module.text)

    def provenance(self, command: str, components: Sequence[str], bundle: Bundle | None) -> Source:
        through = ("mapper", "unet", "vae", *([] if self._adapter is None else ["adapter"]))
        return super().provenance(command, (*components, *through), bundle)

    def components(self, module: MapperAndUNet, command: str) -> dict[str, Component]:
        changed = super().components(module.mapper, command)
        if module.lora is not None:
            made_by = f"{self._bundle.entries['unet'].source.made_by}; {command}"
            components = ("mapper", "audiomae", *networks_of(self.mapper.streams))
            source = self.provenance(made_by, components, self._bundle)
            changed["unet"] = Component(self._bundle.config("unet"), module.merged(), source)
        return changed


@partial(jax.jit, static_argnums=0)
def _diffusion(
    recipe: Stage2Recipe, module: MapperAndUNet, batch: Batch, key: Array
) -> dict[str, Array]:
    draws = recipe.draw(batch, key)
    read = {
        "diffusion": module.mapper.generate(recipe.streams(batch)).astype(jnp.float32),
        "diffusion_true": batch["loa"],
    }
    return {name: recipe.diffusion(module, batch, loa, draws) for name, loa in read.items()}
