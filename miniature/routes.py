"""Recipes of routes to timing that no user needs: the backbone, and an adapter that reads LOA."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jax import numpy as jnp

from mfm_jax.data.features import SOUND_ENCODERS, FeatureSource
from mfm_jax.data.loader import Element
from mfm_jax.mapper import Stream, Streams
from mfm_jax.models.audiomae import LOA
from mfm_jax.storage.files import write_text
from mfm_jax.train.recipes.mapper import streams_of
from mfm_jax.train.recipes.sync import SyncRecipe
from mfm_jax.train.recipes.unet import DenoisingRecipe, UNetRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Float

GRID = (16, 8)
COARSE, FINE = LOA(GRID, (8, 8)), LOA(GRID, (1, 8))
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
class GridSync(SyncRecipe):
    """An adapter that reads LOA of the true sound on a finer grid, and no video.

    That LOA gets noise as the UNet's own does, because a mapper's is not perfect.
    """

    encoders: tuple[tuple[str, int, int], ...] = (("loa", FINE.tokens, 128),)

    @property
    def reads(self) -> tuple[str, ...]:
        return SOUND_ENCODERS

    def read(self, element: Element) -> Element:
        return DenoisingRecipe.read(self, element)

    def streams(self, batch: Batch, key: Array) -> Streams:
        loa, _ = self.spoil(jnp.asarray(FINE.pooled(batch["audiomae"].astype(jnp.float32))), key)
        return loa_stream(loa)


def loa_stream(loa: Float[Array | np.ndarray, "B L E"]) -> Streams:
    """Return LOA of the finer grid as a stream."""
    seconds = jnp.broadcast_to(jnp.asarray(FINE.times()), loa.shape[:2])
    return {"loa": Stream(jnp.asarray(loa), seconds)}


def video_streams(features: Path, names: Sequence[str]) -> Streams:
    """Return the video tokens of all clips in a folder of features."""
    source = FeatureSource(features)
    clips = [source[i] for i in range(len(source))]
    kept = [n for name in names for n in (name, f"{name}_seconds")]
    return streams_of({n: jnp.asarray(np.stack([clip[n] for clip in clips])) for n in kept}, names)
