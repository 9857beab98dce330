"""What the fork server of `tests.forked` imports before it forks."""

import logging

import gcsfs

import mfm_jax.cli.extract
import mfm_jax.inference.generate
import train

# Orbax warns of every array that it writes. The commands hide that as well.
logging.getLogger("absl").setLevel(logging.ERROR)

IMPORTED = (gcsfs, mfm_jax, train)
