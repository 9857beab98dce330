"""Windows that overlap are denoised so that they agree there, after MultiDiffusion (2302.08113).

All arrays have a row for each window, in the order of the video, and time is the second axis. The
last `overlap` positions of a window and the first ones of the next show the same time. They begin
with the same noise, and at each step with the same prediction, so they stay equal.

MultiDiffusion averages predictions. Here each position gets that of the window in which it lies
deeper, because means of two windows blur what is short: onsets at seams get lost.
"""

from typing import NamedTuple

import numpy as np
from jax import numpy as jnp

from mfm_jax.typing import Array, Bool, Float


class Ends(NamedTuple):
    """The windows of a batch that begin and end a video, and so have no neighbour on that side."""

    first: Bool[Array | np.ndarray, " B"]
    last: Bool[Array | np.ndarray, " B"]


def continued(
    own: Float[Array, "B T ..."],
    before: Float[Array, "B T ..."],
    first: Bool[Array | np.ndarray, " B"],
    *,
    overlap: int,
) -> Float[Array, "B T ..."]:
    """Return noise that continues that of the window before: it is the same where they overlap.

    Args:
        own: noise drawn for each window.
        before: noise drawn for the window before it; not read where a window is the first.
    """
    head = jnp.where(_rows(first, own), own[:, :overlap], before[:, -overlap:])
    return own.at[:, :overlap].set(head)


def agreed(
    own: Float[Array, "B T ..."],
    before: Float[Array, "1 T ..."],
    after: Float[Array, "1 T ..."],
    ends: Ends,
    *,
    overlap: int,
) -> Float[Array, "B T ..."]:
    """Return predictions that agree with those of the windows before and after.

    Args:
        own: predictions of the network for each window.
        before: prediction for the window before the batch, and `after` for the one behind it.
    """
    half = overlap // 2  # from here on a position lies deeper in the later window
    heads, tails = own[:, :overlap], own[:, -overlap:]
    earlier = jnp.concatenate([before[:, -overlap:], tails[:-1]])[:, :half]
    later = jnp.concatenate([heads[1:], after[:, :overlap]])[:, half:]
    earlier = jnp.where(_rows(ends.first, own), heads[:, :half], earlier)
    later = jnp.where(_rows(ends.last, own), tails[:, half:], later)
    return own.at[:, :half].set(earlier).at[:, half - overlap :].set(later)


def _rows(mask: Bool[Array | np.ndarray, " B"], like: Array) -> Array:
    return jnp.asarray(mask).reshape(-1, *(1,) * (like.ndim - 1))
