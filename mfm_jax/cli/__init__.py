"""The `mfm` command."""

from mfm_jax.cli.command import main

__all__ = ["main"]
