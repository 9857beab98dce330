"""Routes by which a frozen UNet hears when: what each trains, and how its sound is made.

The UNet reads LOA on AudioLDM2's grid, pool (8, 8), as it was trained. Every route is a mapper and
what, if anything, is added to the UNet.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.clips import DataError
from mfm_jax.data.features import FeatureSource
from mfm_jax.data.loader import CachedDataset, Element, batches
from mfm_jax.mapper import Mapper, MapperConfig
from mfm_jax.models.adapters import AdaptedUNet, AdapterConfig, TimedTokens
from mfm_jax.models.audiomae import LOA
from mfm_jax.storage.files import write_text
from mfm_jax.train.recipes.mapper import LOARecipe, predictions, take
from mfm_jax.train.recipes.sync import SyncRecipe, UNetAndAdapter
from mfm_jax.train.recipes.unet import UNetRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float, Int

GRID = (16, 8)
COARSE = LOA(GRID, (8, 8))
FINE = LOA(GRID, (1, 8))
BOTH = LOA(GRID, (8, 8), fine=(1, 8))
TRAINED = "trained.txt"
"""The file that tells that the backbone is trained."""


@dataclass(frozen=True)
class Backbone(UNetRecipe):
    """The UNet as AudioLDM2's was trained: on one grid alone. The workdir is the bundle."""

    pools: tuple[tuple[int, int], ...] = ((8, 8),)

    def finish(self, module: Any, workdir: Path, command: str) -> Path:
        path = super().finish(module, workdir, command)
        write_text(workdir / TRAINED, f"{command}\n")
        return path


@dataclass(frozen=True)
class VideoSync(SyncRecipe):
    """An adapter that reads the tokens of the video encoders in place of LOA's second grid."""

    encoders: tuple[tuple[str, int, int], ...] = MapperConfig.tiny().encoders
    seconds: tuple[float, ...] = ()  # times of all tokens, LOA's first; the same in all clips

    @cached_property
    def network(self) -> AdapterConfig:
        return replace(super().network, tokens=sum(width for *_, width in self.encoders))

    def read(self, element: Element) -> Element:
        return {**super().read(element), **take(element, [name for name, *_ in self.encoders])}

    def loss(
        self, module: UNetAndAdapter, batch: Batch, key: Array
    ) -> tuple[Array, dict[str, Array]]:
        spoil_key, blank_key, *keys = jax.random.split(key, 4)
        true = COARSE.pooled(batch["audiomae"].astype(jnp.float32))
        loa = replace(self, uncond_prob=0.0).spoil(jnp.asarray(true), spoil_key)
        given = packed(loa, [batch[name] for name, *_ in self.encoders])
        blank = jax.random.uniform(blank_key, (len(given), 1, 1)) < self.uncond_prob
        given = jnp.where(blank, 0.0, given)
        unet = PackedUNet(module.unet, module.adapter)

        def denoise(noised: Array, t: Array) -> Array:
            return unet(noised, t, (given,), context_seconds=jnp.asarray(self.seconds))

        return self.denoising(denoise, self.schedule, batch["latents"], keys), {}


class PackedUNet(AdaptedUNet):
    """An adapted UNet of LOA and of video tokens in one sequence, as `packed` lays them out."""

    def __call__(
        self,
        latents: Float[Array, "B H W C"],
        t: Int[Array, " B"],
        contexts: tuple[Float[Array, "B _S _C"], ...],
        masks: Any = None,
        *,
        context_seconds: Float[Array, " S"],
    ) -> Float[Array, "B H W C"]:
        count, width = self.adapter.config.loa.grids[0].tokens, self.config.contexts[0]
        (given,) = contexts
        timed = TimedTokens(given[:, count:], context_seconds[None, count:])
        return self.unet(
            latents,
            t,
            (given[:, :count, :width],),
            context_seconds=context_seconds[:count],
            beside=self.adapter(timed, latents.shape[1]),
        )


@dataclass(frozen=True)
class _Seconds:
    """Stands for the config of a mapper and for its LOA: it has the times of tokens."""

    seconds: tuple[float, ...]

    @property
    def loa(self) -> "_Seconds":
        return self

    def times(self) -> Float[np.ndarray, " L"]:
        return np.asarray(self.seconds, np.float32)


class PackedTimes(nnx.Module):
    """Takes the place of a mapper where its tokens are there already; it has their times."""

    def __init__(self, seconds: tuple[float, ...]) -> None:
        self.config = _Seconds(seconds)


def packed(
    loa: Float[Array, "B L E"], streams: Sequence[Float[Array | np.ndarray, "B _S _C"]]
) -> Float[Array, "B T C"]:
    """Return LOA and video tokens as one sequence; each stream has channels of its own."""
    total = sum(x.shape[-1] for x in streams)
    parts = [jnp.pad(loa, ((0, 0), (0, 0), (0, total - loa.shape[-1])))]
    at = 0
    for x in streams:
        after = total - at - x.shape[-1]
        parts.append(jnp.pad(jnp.asarray(x, jnp.float32), ((0, 0), (0, 0), (at, after))))
        at += x.shape[-1]
    return jnp.concatenate(parts, axis=1)


def token_seconds(features: Path, encoders: Sequence[tuple[str, int, int]]) -> tuple[float, ...]:
    """Return the times of the tokens that `packed` joins, LOA's first.

    Raises:
        DataError: they differ between the clips of a folder of features.
    """
    source = FeatureSource(features)
    names = [f"{name}_seconds" for name, *_ in encoders]
    times = [np.concatenate([source[i][name] for name in names]) for i in (0, len(source) - 1)]
    if np.abs(times[0] - times[1]).max() > 1e-3:
        raise DataError(f"the clips of {features} have tokens at other times: use one frame rate")
    return tuple(float(x) for x in (*COARSE.times(), *times[0]))


def predicted(mapper: Mapper, recipe: LOARecipe, features: Path) -> Float[np.ndarray, "N L E"]:
    """Return the LOA that a mapper predicts of each clip in a folder, in LOA's own units."""
    dataset = CachedDataset(FeatureSource(features), recipe.read)
    standard, _ = predictions(recipe, mapper, batches(dataset, batch=64, seed=0, train=False))
    return np.asarray(mapper.restore(jnp.asarray(standard)))


def streams_of(
    features: Path, encoders: Sequence[tuple[str, int, int]]
) -> list[Float[np.ndarray, "N _S _C"]]:
    """Return the video tokens of all clips in a folder of features, by stream."""
    source = FeatureSource(features)
    return [np.stack([source[i][name] for i in range(len(source))]) for name, *_ in encoders]
