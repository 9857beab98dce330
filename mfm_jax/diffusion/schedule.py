"""The noise schedule: the share of noise at each timestep, and the prediction of a network."""

from dataclasses import dataclass
from functools import cached_property

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.typing import Array, Float, Int


@dataclass(frozen=True)
class Schedule:
    """Timesteps `0 .. train_steps - 1` of growing noise: `x_t = alpha x_0 + sigma noise`.

    `alpha ** 2 = alphas_cumprod` and `sigma ** 2 = 1 - alphas_cumprod`, so the variance of data of
    unit variance stays 1. The betas are squares of a line ("scaled_linear").
    """

    prediction: str = "epsilon"  # or "v", for small networks: no division by alpha = 0.012
    train_steps: int = 1000  # AudioLDM2, as the two values below
    beta_start: float = 0.0015
    beta_end: float = 0.0195

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v"):
            raise ValueError(f"prediction must be 'epsilon' or 'v', got {self.prediction!r}")

    @cached_property
    def alphas_cumprod(self) -> np.ndarray:
        """Share of data in the variance at each timestep, `[train_steps]` float32.

        It is rounded where PyTorch rounds (a line from both ends, a product kept in double), which
        gives the values that the released networks were trained with.
        """
        first, last = (np.float32(beta**0.5) for beta in (self.beta_start, self.beta_end))
        slope = np.float64((last - first) / np.float32(self.train_steps - 1))
        i = np.arange(self.train_steps)
        line = np.where(
            i < self.train_steps // 2,
            np.float64(first) + slope * i,
            np.float64(last) - slope * (self.train_steps - 1 - i),
        ).astype(np.float32)
        return np.cumprod((1 - line**2).astype(np.float64)).astype(np.float32)

    def noise_levels(self) -> np.ndarray:
        """Return `sigma / alpha` of each timestep: from 0.04 to 84 for AudioLDM2."""
        squares = self.alphas_cumprod.astype(np.float64)
        return np.sqrt((1 - squares) / squares)

    def timesteps(self, steps: int, spacing: str = "leading") -> np.ndarray:
        """Return the `[steps]` int32 timesteps of a sampling run, from noise to data.

        "leading" is AudioLDM2's: 5 steps are 801, 601, 401, 201, 1. "linspace" starts at the last
        timestep; the step to clean data comes after its last one. "logsnr" is evenly spaced in
        `log(alpha / sigma)` and includes timestep 0: more of a few steps are at low noise.

        Raises:
            ValueError: `steps` is not in `1 .. train_steps - 1`.
        """
        last = self.train_steps - 1
        if not 1 <= steps <= last:
            raise ValueError(f"the number of sampling steps must be 1 to {last}, got {steps}")
        if spacing == "leading":
            t: np.ndarray = np.arange(steps)[::-1] * (self.train_steps // steps) + 1
        elif spacing == "linspace":
            t = np.linspace(0, last, steps + 1).round()[:0:-1]
        elif spacing == "logsnr":
            squares = self.alphas_cumprod.astype(np.float64)
            logsnr = np.log(squares / (1 - squares))
            grid = np.linspace(logsnr[-1], logsnr[0], steps)
            t = np.abs(grid[:, None] - logsnr[None, :]).argmin(axis=1)
            # Neighbours coincide if the grid is finer than the timesteps: move them apart.
            rank = np.arange(steps)
            t = np.maximum.accumulate(t[::-1] - rank) + rank
            t = np.minimum(t, last - rank[::-1])[::-1]
        else:
            raise ValueError(f"no spacing {spacing!r}: use 'leading', 'linspace' or 'logsnr'")
        return t.astype(np.int32)

    def _rates(self, t: Int[Array, " B"], like: Array) -> tuple[jax.Array, jax.Array]:
        """Return alpha and sigma at `t`, in the type of `like` and shaped to multiply it."""
        squares = jnp.asarray(self.alphas_cumprod)[t].reshape(-1, *(1,) * (like.ndim - 1))
        return jnp.sqrt(squares).astype(like.dtype), jnp.sqrt(1 - squares).astype(like.dtype)

    def add_noise(
        self, x0: Float[Array, "B H W C"], noise: Float[Array, "B H W C"], t: Int[Array, " B"]
    ) -> Float[Array, "B H W C"]:
        """Return `x_t` of each example at its own timestep."""
        alpha, sigma = self._rates(t, x0)
        return alpha * x0 + sigma * noise

    def target(
        self, x0: Float[Array, "B H W C"], noise: Float[Array, "B H W C"], t: Int[Array, " B"]
    ) -> Float[Array, "B H W C"]:
        """Return the true output at `x_t`: the noise, or `v = alpha noise - sigma x_0`."""
        if self.prediction == "epsilon":
            return noise
        alpha, sigma = self._rates(t, x0)
        return alpha * noise - sigma * x0

    def to_x0_eps(
        self, output: Float[Array, "B H W C"], x: Float[Array, "B H W C"], t: Int[Array, " B"]
    ) -> tuple[Float[Array, "B H W C"], Float[Array, "B H W C"]]:
        """Return the data and the noise that a network's `output` at `x` predicts."""
        alpha, sigma = self._rates(t, x)
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        return alpha * x - sigma * output, alpha * output + sigma * x
