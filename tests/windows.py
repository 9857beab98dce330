"""The windows of the paper's two encoders, as tests write them."""

from typing import Any

from mfm_jax.data.decoded import ClipSpec
from mfm_jax.media.windows import WindowSpec


def pair_spec(*sizes: Any, **named: Any) -> WindowSpec:
    """Return windows with the fields of `ClipSpec`."""
    return ClipSpec(*sizes, **named).windows
