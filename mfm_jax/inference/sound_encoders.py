"""The networks that read sound: AudioMAE for training and choices, Cnn14 for scores."""

from functools import partial

import jax
from jax import numpy as jnp

from mfm_jax.models.audiomae import LOA, AudioMAE
from mfm_jax.models.cnn14 import Cnn14Tagger
from mfm_jax.typing import Array, Float


@jax.jit
def encode_audiomae(
    audiomae: AudioMAE, fbank: Float[Array, "B T M"]
) -> Float[Array, "B patches D"]:
    """Encode a sound: AudioMAE's tokens, the class token first, not pooled to LOA."""
    return audiomae(fbank)


@partial(jax.jit, static_argnames="grid")
def hear_loa(
    audiomae: AudioMAE, fbank: Float[Array, "B T M"], *, grid: LOA
) -> Float[Array, "B L E"]:
    """Return the LOA of sounds in its own units, in float32."""
    tokens = encode_audiomae(audiomae, fbank).astype(jnp.float32)
    return jnp.asarray(grid.pooled(tokens))


@jax.jit
def encode_cnn14(
    cnn14: Cnn14Tagger, mel: Float[Array, "B T M"]
) -> tuple[Float[Array, "B D"], Float[Array, "B V"]]:
    """Return the embedding of sounds and the logits of AudioSet's classes."""
    return cnn14(mel)
