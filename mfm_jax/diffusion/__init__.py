"""Diffusion without networks: schedules are arrays, a sampler step is a pure function."""

from mfm_jax.diffusion.guidance import guide
from mfm_jax.diffusion.samplers import sample
from mfm_jax.diffusion.schedule import Schedule

__all__ = ["Schedule", "guide", "sample"]
