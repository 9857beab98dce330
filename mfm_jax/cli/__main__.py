"""`python -m mfm_jax.cli` is `mfm`."""

import sys

from mfm_jax.cli import main

sys.exit(main())
