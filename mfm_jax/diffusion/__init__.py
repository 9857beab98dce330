"""Diffusion that knows no network: schedules are arrays, a step is a function."""

from mfm_jax.diffusion.guidance import guide
from mfm_jax.diffusion.samplers import sample
from mfm_jax.diffusion.schedule import Schedule

__all__ = ["Schedule", "guide", "sample"]
