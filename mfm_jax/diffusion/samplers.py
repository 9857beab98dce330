"""Samplers, from noise to data: DDIM (arXiv 2010.02502), DPM-Solver++(2M) (arXiv 2211.01095).

The coefficients that depend only on the timestep are computed beforehand in double precision, one
row for each step. A step is then a weighted sum.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import jax
import numpy as np
from jax import lax
from jax import numpy as jnp

from mfm_jax.diffusion.guidance import Denoiser
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
    keys: Shaped[Array, " B"], step: Int[Array, ""] | int | np.ndarray, shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """Draw the noise of one sampling step, for each example from its own key.

    An example thus gets the same noise in any batch.
    """
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape[1:]))(keys)


class State(NamedTuple):
    """The latents of a run between two steps, and the data that the last step predicted."""

    x: Float[Array, "B H W C"]
    x0: Float[Array, "B H W C"]  # zeros before the first step

    @classmethod
    def begin(cls, noise: Float[Array, "B H W C"]) -> "State":
        """Return the state before the first step, in float32."""
        x = noise.astype(jnp.float32)
        return cls(x, jnp.zeros_like(x))


class Step(NamedTuple):
    """All steps of a sampling run, or one of them."""

    number: Array | np.ndarray  # from 0
    t: Array | np.ndarray  # timesteps
    row: DDIMRow | DPMRow


@dataclass(frozen=True)
class Sampler:
    """The steps of a sampling run, and what one of them does.

    Raises:
        ValueError: an unknown sampler, a number of steps the schedule does not have, `eta` with
            "dpm++", a `spacing` with "ddim".
    """

    schedule: Schedule
    name: str = "ddim"  # or "dpm++"
    steps: int = 200
    spacing: str | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ("ddim", "dpm++"):
            raise ValueError(f"no sampler {self.name!r}: use 'ddim' or 'dpm++'")
        if self.name == "ddim" and self.spacing is not None:
            raise ValueError("only the sampler 'dpm++' takes a spacing")
        if self.name == "dpm++" and self.eta:
            raise ValueError("the sampler 'dpm++' is deterministic: use 'ddim' for an eta above 0")

    def rows(self) -> Step:
        """Return all steps, from noise to data."""
        rows: tuple[np.ndarray, DDIMRow | DPMRow]
        if self.name == "ddim":
            rows = ddim_rows(self.schedule, self.steps, self.eta)
        else:
            rows = dpm_rows(self.schedule, self.steps, self.spacing or "linspace")
        return Step(np.arange(self.steps), *rows)

    def within(self, interval: tuple[float, float] | None) -> list[bool]:
        """Return for each step whether its noise level is in `(low, high]`; None is everywhere.

        The noise level is `sigma / alpha`, as in Kynkaanniemi et al. (arXiv 2404.07724).
        """
        levels = self.schedule.noise_levels()[self.rows().t]
        low, high = (-np.inf, np.inf) if interval is None else interval
        return [bool(low < level <= high) for level in levels]

    def step(
        self,
        state: State,
        output: Float[Array, "B H W C"],
        step: Step,
        z: Float[Array, "B H W C"] | None = None,
    ) -> State:
        """Do one step with the `output` of the network at it; `z` is noise if `eta` is not 0."""
        t = jnp.full(state.x.shape[:1], step.t, jnp.int32)
        x0, eps = self.schedule.to_x0_eps(output.astype(state.x.dtype), state.x, t)
        if isinstance(step.row, DPMRow):
            return State(dpm_step(state.x, x0, state.x0, step.row), x0)
        return State(ddim_step(x0, eps, z, step.row), x0)


def sample(
    denoise: Denoiser,
    noise: Float[Array, "B H W C"],
    schedule: Schedule,
    *,
    sampler: str = "ddim",
    steps: int,
    spacing: str | None = None,
    eta: float = 0.0,
    keys: Shaped[Array, " B"] | None = None,
    unguided: Denoiser | None = None,
    interval: tuple[float, float] | None = None,
) -> Float[Array, "B H W C"]:
    """Sample latents, in float32, from standard normal `noise`.

    Args:
        denoise: `(x [B, H, W, C] float32, t [B] int32) -> output` of `schedule.prediction`.
        steps: evaluations of `denoise`; with "dpm++" 10 to 25 are enough.
        spacing: how the timesteps of "dpm++" are spaced: "linspace" if not given; "logsnr" follows
            the exact path more closely from about 10 steps up. "ddim" always takes "leading".
        eta: fresh noise of "ddim", from 0 (none) to 1.
        keys: one random key for each example, needed if `eta` is not 0.
        unguided: takes the place of `denoise` at noise levels outside of `interval`; needed if that
            is given.
        interval: noise levels `sigma / alpha`, the lower one excluded.

    Raises:
        ValueError: an unknown sampler, a number of steps the schedule does not have, `eta` without
            `keys` or with "dpm++", a `spacing` with "ddim".
    """
    run = Sampler(schedule, sampler, steps, spacing, eta)
    if eta and keys is None:
        raise ValueError(f"sampling with eta {eta} draws noise: give one random key an example")
    state, rows, done = State.begin(noise), run.rows(), 0
    # The steps are known to the compiler, so each run of them with one denoiser is a loop.
    for guided, those in groupby(run.within(interval)):
        chosen = denoise if guided or unguided is None else unguided

        def one(state: State, step: Step, chosen: Denoiser = chosen) -> tuple[State, None]:
            t = jnp.full(state.x.shape[:1], step.t, jnp.int32)
            z = None
            if keys is not None and eta:
                z = fresh_noise(keys, step.number, state.x.shape)
            return run.step(state, chosen(state.x, t), step, z), None

        end = done + len(list(those))
        part = jax.tree.map(lambda each, a=done, b=end: each[a:b], rows)
        state, done = lax.scan(one, state, part)[0], end
    return state.x
