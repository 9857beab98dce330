"""The UNet on the Foley world: denoise latents, told by the LOA of the true sound."""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.data.loader import Element
from mfm_jax.diffusion import Schedule
from mfm_jax.errors import SettingError
from mfm_jax.foley.clips import SETTINGS, FeatureRecipe
from mfm_jax.models.audiomae import LOA, pool_loa
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.train.step import Batch
from mfm_jax.typing import Array


@dataclass(frozen=True)
class UNetRecipe(FeatureRecipe):
    """Latent diffusion conditioned on LOA, with what a mapper's LOA will lack."""

    network: UNetConfig = field(default_factory=UNetConfig.tiny)
    schedule: Schedule = SETTINGS.schedule
    grid: tuple[int, int] = (16, 8)  # AudioMAE's patches along (time, mel)
    pools: tuple[tuple[int, int], ...] = ((1, 8),)  # LOA grids, one drawn for each batch
    chances: tuple[float, ...] = (1.0,)  # of each of them
    dropped: float = 0.1  # share of clips without a condition, for guidance
    noisy: float = 0.5  # share of clips whose LOA gets noise, since a mapper's is not perfect
    noise: float = 0.6  # largest deviation of that noise, in those of LOA

    def read(self, element: Element) -> Element:
        return {name: element[name] for name in ("audiomae", "latents")}

    def build(self, *, rngs: nnx.Rngs) -> nnx.Module:
        if len(self.pools) != len(self.chances):
            raise SettingError(f"recipe.chances needs {len(self.pools)} values, one for each pool")
        return UNet(self.network, rngs=rngs)

    def loss(self, module: UNet, batch: Batch, key: Array) -> tuple[Array, dict[str, Array]]:
        keys = jax.random.split(key, 4)
        latents = batch["latents"].astype(jnp.float32)
        loa, mask, seconds = self.condition(batch["audiomae"].astype(jnp.float32), keys[0])
        loa = self.spoil(loa, keys[1])
        t = jax.random.randint(keys[2], (len(latents),), 0, self.schedule.train_steps)
        noise = jax.random.normal(keys[3], latents.shape)
        noised = self.schedule.add_noise(latents, noise, t)
        made = module(noised, t, (loa,), (mask,), context_seconds=seconds)
        return jnp.mean((made - self.schedule.target(latents, noise, t)) ** 2), {}

    def condition(self, tokens: Array, key: Array) -> tuple[Array, Array | None, Array]:
        """LOA `[B, L, D]` of one of the grids, its mask and times; padded to the longest grid."""
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
        which = jax.random.choice(key, len(grids), p=jnp.array(self.chances))
        counts = jnp.array([grid.tokens for grid in grids])
        mask = jnp.arange(longest)[None, :] < counts[which][None, None]
        mask = jnp.broadcast_to(mask, loa.shape[1:3])
        return loa[which], mask, jnp.asarray(times)[which]

    def spoil(self, loa: Array, key: Array) -> Array:
        """Add noise to some clips' LOA and take that of others away."""
        which, how_much, what, without = jax.random.split(key, 4)
        shape = (len(loa), 1, 1)
        spread = loa.std(axis=(0, 1), keepdims=True)
        level = self.noise * jax.random.uniform(how_much, shape)
        level = jnp.where(jax.random.uniform(which, shape) < self.noisy, level, 0.0)
        loa = loa + level * spread * jax.random.normal(what, loa.shape)
        return jnp.where(jax.random.uniform(without, shape) < self.dropped, 0.0, loa)

    def finish(self, module: UNet, workdir: Path, command: str) -> Path:
        return self.put("unet", self.network, module, command).path
