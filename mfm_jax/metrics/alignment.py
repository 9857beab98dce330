"""Audio-visual agreement of CAVP (Diff-Foley, arXiv 2306.17203): cosines of its two towers.

Diff-Foley publishes no such score. Ours has the form of CAVP's training: a piece of 16 moments,
4 s, becomes one vector by its maximum over time; those of picture and sound are compared.
"""

from typing import NamedTuple

from jax import numpy as jnp

from mfm_jax.typing import Array, Float, Int


class Agreement(NamedTuple):
    """Agreement of the pictures of pieces with their sounds, all in float32."""

    video: Float[Array, "B D"]  # one unit vector for each picture
    audio: Float[Array, "B S D"]  # and for each sound
    moments: Float[Array, "B S"]  # mean of the cosines of moments, for each sound


def agreement(
    video: Float[Array, "B T D"], audio: Float[Array, "B S T D"], steps: Int[Array, " B"]
) -> Agreement:
    """Compare S sounds of each piece with its picture, over its first `steps` moments.

    Args:
        video: features of moments, not normalised, as those of `audio`.
    """
    video, audio = video.astype(jnp.float32), audio.astype(jnp.float32)
    there = jnp.arange(video.shape[1])[None, :] < steps[:, None]
    cosines = jnp.einsum("btd,bstd->bst", _unit(video), _unit(audio))
    total = jnp.where(there[:, None, :], cosines, 0.0).sum(axis=-1)
    pooled = jnp.where(there[:, :, None], video, -jnp.inf).max(axis=1)
    heard = jnp.where(there[:, None, :, None], audio, -jnp.inf).max(axis=2)
    return Agreement(_unit(pooled), _unit(heard), total / steps.astype(jnp.float32)[:, None])


def _unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
