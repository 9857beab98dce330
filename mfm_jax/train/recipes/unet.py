"""The UNet: denoise latents, conditioned on the LOA of the true sound."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.data.features import SOUND_ENCODERS
from mfm_jax.data.loader import Element
from mfm_jax.data.sources import Split
from mfm_jax.diffusion import Schedule
from mfm_jax.errors import SettingError
from mfm_jax.models.audiomae import LOA, pool_loa
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.train.recipe import check_shares
from mfm_jax.train.recipes.features import FeatureRecipe
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array, Bool, Float


@dataclass(frozen=True)
class DenoisingRecipe(FeatureRecipe):
    """Latent diffusion conditioned on the LOA of the true sound, with what a mapper's will lack."""

    uncond_prob: float = 0.1  # share of clips without a condition, for guidance
    noise_prob: float = 0.5  # share of clips whose LOA gets noise, since a mapper's is not perfect
    noise_std: float = 0.6  # largest deviation of that noise, in deviations of LOA

    def __post_init__(self) -> None:
        check_shares(self, "uncond_prob", "noise_prob")

    @property
    def reads(self) -> tuple[str, ...]:
        return SOUND_ENCODERS

    def read(self, element: Element) -> Element:
        return {name: element[name] for name in ("audiomae", "latents")}

    def denoising(
        self,
        denoise: Callable[[Array, Array], Array],
        schedule: Schedule,
        latents: Float[Array, "B H W C"],
        keys: Sequence[Array] | Array,
    ) -> Float[Array, ""]:
        """Return the squared error of `denoise(noised, t)`, with a step and noise for each clip."""
        latents = latents.astype(jnp.float32)
        t = jax.random.randint(keys[0], (len(latents),), 0, schedule.train_steps)
        noise = jax.random.normal(keys[1], latents.shape)
        made = denoise(schedule.add_noise(latents, noise, t), t).astype(jnp.float32)
        return jnp.mean((made - schedule.target(latents, noise, t)) ** 2)

    def spoil(
        self, loa: Float[Array, "B L D"], key: Array
    ) -> tuple[Float[Array, "B L D"], Bool[Array, " B"]]:
        """Add noise to the LOA of some clips and set that of others to zero; return which."""
        which, how_much, what, without = jax.random.split(key, 4)
        shape = (len(loa), 1, 1)
        spread = loa.std(axis=(0, 1), keepdims=True)
        level = self.noise_std * jax.random.uniform(how_much, shape)
        level = jnp.where(jax.random.uniform(which, shape) < self.noise_prob, level, 0.0)
        loa = loa + level * spread * jax.random.normal(what, loa.shape)
        blank = jax.random.uniform(without, shape) < self.uncond_prob
        return jnp.where(blank, 0.0, loa), blank[:, 0, 0]


@dataclass(frozen=True)
class UNetRecipe(DenoisingRecipe):
    """The UNet, from the beginning."""

    network: UNetConfig = field(default_factory=UNetConfig.tiny)
    grid: tuple[int, int] = (16, 8)  # AudioMAE's patches along (time, mel)
    pools: tuple[tuple[int, int], ...] = ((1, 8),)  # LOA grids, one drawn for each batch
    pool_probs: tuple[float, ...] = (1.0,)  # of each of them

    @property
    def schedule(self) -> Schedule:
        """The noise schedule and the prediction, which the bundle keeps."""
        return self.settings.schedule

    def prepare(self, workdir: Path) -> Split:
        kept = Bundle.open(self.bundle_path(workdir)).settings.schedule
        if kept != self.schedule:
            raise SettingError(
                f"recipe.settings.schedule is {self.schedule}, and that of bundle {self.bundle} is "
                f"{kept}: make them the same"
            )
        return super().prepare(workdir)

    def computes(self, bundle: Bundle) -> list[str]:
        """Return the encoders of sound alone.

        Those of video may still be in training beside this, and their features would soon be old.
        """
        return list(self.reads)

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        if len(self.pools) != len(self.pool_probs):
            raise SettingError(
                f"recipe.pool_probs needs {len(self.pools)} values, one for each pool"
            )
        return UNet(self.network, rngs=rngs)

    def loss(self, module: UNet, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, 4)
        loa, mask, seconds = self.condition(batch["audiomae"].astype(jnp.float32), keys[0])
        loa, _ = self.spoil(loa, keys[1])

        def denoise(noised: Array, t: Array) -> Array:
            return module(noised, t, (loa,), (mask,), context_seconds=seconds)

        return self.denoising(denoise, self.schedule, batch["latents"], keys[2:]), {}

    def condition(self, tokens: Array, key: Array) -> tuple[Array, Array | None, Array]:
        """Return LOA `[B, L, D]` of one of the grids, its mask and times, padded to the longest."""
        grids = [LOA(self.grid, pool) for pool in self.pools]
        longest = max(grid.tokens for grid in grids)
        rows = [longest - grid.tokens for grid in grids]
        loa = jnp.stack(
            [
                jnp.pad(pool_loa(tokens, g.grid, g.pool), ((0, 0), (0, more), (0, 0)))
                for g, more in zip(grids, rows, strict=True)
            ]
        )
        times = np.stack([np.pad(g.times(), (0, m)) for g, m in zip(grids, rows, strict=True)])
        if len(grids) == 1:
            return loa[0], None, jnp.asarray(times[0])
        which = jax.random.choice(key, len(grids), p=jnp.array(self.pool_probs))
        counts = jnp.array([grid.tokens for grid in grids])
        mask = jnp.arange(longest)[None, :] < counts[which][None, None]
        mask = jnp.broadcast_to(mask, loa.shape[1:3])
        return loa[which], mask, jnp.asarray(times)[which]

    def finish(self, module: UNet, workdir: Path, command: str) -> Path:
        return self.write_component(
            "unet", self.network, module, workdir, command, trained_with=("audiomae", "vae")
        ).path
