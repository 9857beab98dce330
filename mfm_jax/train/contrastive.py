"""The contrastive losses of CAVP's published training code (Diff-Foley `open_clip/loss.py`).

Matching pairs of video and audio features lie at equal positions, and the batch is one array,
sharded or not. The originals gather features over GPUs without their gradients, so that each GPU
differentiates its own rows; the towers' gradient is then the one here divided by the number of
GPUs, a factor that AdamW does not see.
"""

from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange
from jax import numpy as jnp

from mfm_jax.typing import Array, Float

MAX_LOG_SCALE = float(np.log(100))


class ContrastiveLoss(NamedTuple):
    """The parts of a contrastive loss; `total` is `across` plus the weighted `within`."""

    total: Float[Array, ""]
    across: Float[Array, ""]  # among all clips of the batch ("extra" or "semantic" there)
    within: Float[Array, ""]  # among clips of a video, or steps of a clip ("intra" or "temporal")


def clamp_logit_scale(logit_scale: Float[Array, ""]) -> Float[Array, ""]:
    """Clamp `logit_scale` to [0, ln 100], as the original does after every step."""
    return jnp.clip(logit_scale, 0.0, MAX_LOG_SCALE)


def _logits(
    scale: Float[Array, ""], video: Float[Array, "*G N D"], audio: Float[Array, "*G N D"]
) -> Float[Array, "*G N N"]:
    """Return scaled products in float32; rows are video, columns audio."""
    products = jnp.einsum("...vd,...ad->...va", video, audio, preferred_element_type=jnp.float32)
    return scale.astype(jnp.float32) * products


def _pick_diagonal(logits: Float[Array, "*G N N"]) -> Float[Array, ""]:
    """Return the mean cross entropy of choosing the column that belongs to each row."""
    chosen = jnp.diagonal(jax.nn.log_softmax(logits), axis1=-2, axis2=-1)
    return -chosen.mean()


def _both_ways(logits: Float[Array, "*G N N"]) -> Float[Array, ""]:
    """Average video choosing audio and audio choosing video."""
    return 0.5 * (_pick_diagonal(logits) + _pick_diagonal(jnp.swapaxes(logits, -1, -2)))


def clip_loss(
    video: Float[Array, "N D"], audio: Float[Array, "N D"], scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Compute `ClipLoss`: every pair against the whole batch. `scale` is `exp(logit_scale)`.

    With the time steps of all clips in one axis it contrasts moments instead of clips.
    """
    return _both_ways(_logits(scale, video, audio))


def clip_intra_contrast(
    video: Float[Array, "N D"],
    audio: Float[Array, "N D"],
    scale: Float[Array, ""],
    *,
    clips: int = 3,
    weight: float = 1.0,
) -> ContrastiveLoss:
    """Compute the released objective (`loss.py:451-538`): the batch, and the clips of each video.

    Rows are video-major: `clips` of the first video, then those of the second.
    """
    across = clip_loss(video, audio, scale)
    video, audio = (rearrange(x, "(v c) d -> v c d", c=clips) for x in (video, audio))
    within = _both_ways(_logits(scale, video, audio))
    return ContrastiveLoss(across + weight * within, across, within)


def temporal_semantic(
    video: Float[Array, "B D"],
    audio: Float[Array, "B D"],
    video_steps: Float[Array, "B T D"],
    audio_steps: Float[Array, "B T D"],
    scale: Float[Array, ""],
    *,
    weight: float = 0.5,
) -> ContrastiveLoss:
    """Compute `ClipLoss_Temporal_Semantic`: clips in the batch, and time steps in their clip."""
    across = clip_loss(video, audio, scale)
    within = _both_ways(_logits(scale, video_steps, audio_steps))
    return ContrastiveLoss(across + weight * within, across, within)


def temporal_mean(
    video_max: Float[Array, "N D"],
    audio_max: Float[Array, "N D"],
    video_mean: Float[Array, "N D"],
    audio_mean: Float[Array, "N D"],
    scale: Float[Array, ""],
    *,
    clips: int = 3,
    weight: float = 1.0,
) -> ContrastiveLoss:
    """Compute `..._Temporal_Mean`: max-pooled features across the batch, means within a video.

    As in the original, `within` takes the video to audio direction only (it averages it with
    itself, `loss.py:644`).
    """
    across = clip_loss(video_max, audio_max, scale)
    video, audio = (rearrange(x, "(v c) d -> v c d", c=clips) for x in (video_mean, audio_mean))
    within = _pick_diagonal(_logits(scale, video, audio))
    return ContrastiveLoss(across + weight * within, across, within)
