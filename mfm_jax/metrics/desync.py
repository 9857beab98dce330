"""DeSync: by how many seconds a generated sound is off, as Synchformer hears it. Lower is better.

av-benchmark av_bench/evaluate.py:171-191. Of every clip two windows are scored, its first and its
last segments. The sync transformer classifies the offset of each window; its size is the score.
There is no softmax, no expectation and no search. `mfm_jax.inference.desync` computes the logits.
"""

import numpy as np

from mfm_jax.errors import UserError
from mfm_jax.typing import Array, Float


class DesyncError(UserError):
    """Logits that are no scores."""


def desync_per_window(
    logits: Float[Array | np.ndarray, "B windows V"], seconds: Float[np.ndarray, " V"]
) -> Float[np.ndarray, "B windows"]:
    """Return the size in seconds of the likeliest offset of each window.

    Args:
        seconds: the offset of each class (`SyncConfig.seconds`).

    Raises:
        DesyncError: a logit is not finite. In the original a NaN wins and counts as an offset.
    """
    logits = np.asarray(logits, np.float64)
    if not np.isfinite(logits).all():
        raise DesyncError(
            "logits of offsets are not finite: a clip or the weights are damaged, or the sync "
            "transformer is not trained (--config tiny_synchformer_sync)"
        )
    return np.abs(seconds.astype(np.float64))[logits.argmax(axis=-1)]


def desync(
    logits: Float[Array | np.ndarray, "B windows V"], seconds: Float[np.ndarray, " V"]
) -> float:
    """Return DeSync of a set of clips: the mean over all windows.

    Raises:
        ValueError: there is no clip.
        DesyncError: a logit is not finite.
    """
    if not len(logits):
        raise ValueError("DeSync of no clips is not defined")
    return float(desync_per_window(logits, seconds).mean())
