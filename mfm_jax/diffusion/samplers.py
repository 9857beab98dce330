"""Samplers, from noise to data: DDIM (arXiv 2010.02502), DPM-Solver++(2M) (arXiv 2211.01095).

The coefficients that depend only on the timestep are computed beforehand in double precision, one
row for each step. A step is then a weighted sum.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from mfm_jax.diffusion.schedule import Schedule
from mfm_jax.typing import Array, Float, Int, Shaped


class DDIMRow(NamedTuple):
    """Coefficients of `x' = data x_0 + keep eps + fresh z`, of all steps or of one."""

    data: Array
    keep: Array
    fresh: Array


class DPMRow(NamedTuple):
    """Coefficients of `x' = decay x + gain (x_0 + extrapolate (x_0 - previous x_0))`."""

    decay: Array
    gain: Array
    extrapolate: Array


def ddim_rows(schedule: Schedule, steps: int, eta: float) -> tuple[np.ndarray, DDIMRow]:
    """Return timesteps and coefficients of DDIM.

    `eta` 0 is deterministic, 1 is ancestral sampling (DDPM). The last step ends at timestep 0,
    which still has a little noise, and not at clean data; this is what the released AudioLDM2 does
    (`set_alpha_to_one` false).
    """
    t = schedule.timesteps(steps, "leading")
    squares = schedule.alphas_cumprod.astype(np.float64)
    now, then = squares[t], squares[np.maximum(t - schedule.train_steps // steps, 0)]
    fresh = eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
    row = np.sqrt(then), np.sqrt(1 - then - fresh**2), fresh
    return t, DDIMRow(*(jnp.asarray(c, jnp.float32) for c in row))


def ddim_step(
    x0: Float[Array, "B H W C"],
    eps: Float[Array, "B H W C"],
    z: Float[Array, "B H W C"] | None,
    row: DDIMRow,
) -> Float[Array, "B H W C"]:
    """Return the next, less noisy `x`; `z` is the fresh noise, None if `eta` is 0."""
    x = row.data * x0 + row.keep * eps
    return x if z is None else x + row.fresh * z


def dpm_rows(schedule: Schedule, steps: int, spacing: str) -> tuple[np.ndarray, DPMRow]:
    """Return timesteps and coefficients of the second-order midpoint method.

    It ends at clean data. The first step has no previous `x_0`, and the last one ends at its own
    `x_0`. Both are of first order, with an extrapolation of 0.
    """
    t = schedule.timesteps(steps, spacing)
    squares = schedule.alphas_cumprod.astype(np.float64)[t]
    alpha, sigma = np.sqrt(squares), np.sqrt(1 - squares)
    h = np.diff(np.log(alpha / sigma))
    decay = np.append(sigma[1:] / sigma[:-1], 0.0)
    gain = np.append(-alpha[1:] * np.expm1(-h), 1.0)
    extrapolate = np.zeros(steps)
    extrapolate[1:-1] = h[1:] / (2 * h[:-1])
    return t, DPMRow(*(jnp.asarray(c, jnp.float32) for c in (decay, gain, extrapolate)))


def dpm_step(
    x: Float[Array, "B H W C"],
    x0: Float[Array, "B H W C"],
    x0_before: Float[Array, "B H W C"],
    row: DPMRow,
) -> Float[Array, "B H W C"]:
    """Return the next, less noisy `x`."""
    return row.decay * x + row.gain * (x0 + row.extrapolate * (x0 - x0_before))


def fresh_noise(
    keys: Shaped[Array, " B"], step: Int[Array, ""] | int, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Draw the noise of one sampling step, for each example from its own key.

    An example thus gets the same noise in any batch.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape[1:]))(keys)


def sample(
    denoise: Callable[[Array, Array], Array],
    noise: Float[Array, "B H W C"],
    schedule: Schedule,
    *,
    sampler: str = "ddim",
    steps: int,
    spacing: str | None = None,
    eta: float = 0.0,
    keys: Shaped[Array, " B"] | None = None,
) -> Float[Array, "B H W C"]:
    """Sample latents, in float32, from standard normal `noise`.

    Args:
        denoise: `(x [B, H, W, C] float32, t [B] int32) -> output` of `schedule.prediction`.
        steps: evaluations of `denoise`; with "dpm++" 10 to 25 are enough.
        spacing: how the timesteps of "dpm++" are spaced: "linspace" if not given; "logsnr" follows
            the exact path more closely from about 10 steps up. "ddim" always takes "leading".
        eta: fresh noise of "ddim", from 0 (none) to 1.
        keys: one random key for each example, needed if `eta` is not 0.

    Raises:
        ValueError: an unknown sampler, a number of steps the schedule does not have, `eta` without
            `keys` or with "dpm++", a `spacing` with "ddim".
    """
    x = noise.astype(jnp.float32)

    def predict(x: Array, t: Array) -> tuple[Array, Array]:
        t = jnp.full(x.shape[:1], t, jnp.int32)
        return schedule.to_x0_eps(denoise(x, t).astype(x.dtype), x, t)

    if sampler == "ddim":
        if spacing is not None:
            raise ValueError("only the sampler 'dpm++' takes a spacing")
        if eta and keys is None:
            raise ValueError(f"sampling with eta {eta} draws noise: give one random key an example")

        def ddim(x, at):
            i, t, row = at
            z = None if keys is None or not eta else fresh_noise(keys, i, x.shape)
            return ddim_step(*predict(x, t), z, row), None

        return lax.scan(ddim, x, (jnp.arange(steps), *ddim_rows(schedule, steps, eta)))[0]

    if sampler == "dpm++":
        if eta:
            raise ValueError("the sampler 'dpm++' is deterministic: use 'ddim' for an eta above 0")

        def dpm(carry, at):
            x, before = carry
            t, row = at
            x0, _ = predict(x, t)
            return (dpm_step(x, x0, before, row), x0), None

        rows = dpm_rows(schedule, steps, spacing or "linspace")
        return lax.scan(dpm, (x, jnp.zeros_like(x)), rows)[0][0]

    raise ValueError(f"no sampler {sampler!r}: use 'ddim' or 'dpm++'")
