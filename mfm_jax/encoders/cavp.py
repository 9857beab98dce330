"""CAVP as an encoder: what may sound, one token for each of a few frames a second."""

import jax
from jax import numpy as jnp

from mfm_jax.encoders.encoder import Encoder, Frames, stream
from mfm_jax.mapper import Stream
from mfm_jax.media.windows import cavp_view
from mfm_jax.models.cavp import CAVPConfig, CAVPVideo


@jax.jit
def encode_cavp(cavp: CAVPVideo, frames: Frames) -> Stream:
    """Return one token for each frame, at the time of the frame."""
    return stream(cavp(frames.pixels.astype(jnp.float32) / 255.0), frames.seconds)


class CAVPEncoder(Encoder):
    """The bundle's CAVP."""

    title = "CAVP"
    encode = staticmethod(encode_cavp)

    def __init__(self, config: CAVPConfig, seconds: float, tensor: str = "") -> None:
        super().__init__(config, seconds, tensor)
        self.view = cavp_view(config.fps, config.size)
