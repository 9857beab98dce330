"""What the fork server of `tests.forked` imports before it forks."""

import gc
import logging

import gcsfs

import mfm_jax.cli.extract
import mfm_jax.inference.generate
import train

# Orbax warns of every array that it writes. The commands hide that as well.
logging.getLogger("absl").setLevel(logging.ERROR)

IMPORTED = (gcsfs, mfm_jax, train)

# As in the process of the tests: without this a seventh of the time goes into looking for garbage.
gc.collect()
gc.freeze()
gc.set_threshold(50_000, 20, 20)
