"""Motion as an encoder: how much the picture changes, by place, 25 times a second. No network.

A mapper reads it through a stem (`MapperConfig.stems`), which is trained with it.
"""

import jax
from einops import rearrange, reduce
from jax import numpy as jnp

from mfm_jax.encoders.encoder import Encoder, Frames, stream
from mfm_jax.mapper import Stream
from mfm_jax.media.windows import View
from mfm_jax.typing import Array, Float, UInt8

FPS = 25
SIDE = 64  # pixels of a frame
CELLS = 8  # along either side: a token has their square


@jax.jit
def encode_motion(network: None, frames: Frames) -> Stream:
    """Return the change of each frame from the one before it, in each cell of a grid.

    It is the logarithm of one plus the mean absolute difference in grey levels, in float32. The
    first frame of a window has none.
    """
    cells = rearrange(changes(frames.pixels, CELLS), "b t h w -> b t (h w)")
    return stream(jnp.log1p(cells), frames.seconds)


def changes(pixels: UInt8[Array, "B T H W 3"], cells: int) -> Float[Array, "B T R C"]:
    """Return the mean absolute difference from the frame before, in a grid of so many cells a side.

    The first frame of a window has none.
    """
    x = pixels.astype(jnp.float32)
    change = jnp.abs(jnp.diff(x, axis=1, prepend=x[:, :1]))
    return reduce(change, "b t (h p) (w q) c -> b t h w", "mean", h=cells, w=cells)


class MotionEncoder(Encoder):
    """Differences of frames, which need no bundle."""

    title = "motion"
    formula = f"log(1 + |change|), {CELLS} x {CELLS} cells of {SIDE} pixels, {FPS} fps"
    encode = staticmethod(encode_motion)

    def __init__(self, config: None, seconds: float, tensor: str = "") -> None:
        super().__init__(config, seconds, tensor)
        self.view = View((SIDE, SIDE), "squash_area", fps=FPS)
