"""TimeChat's patches as an encoder: what is where, three times a second.

The tokens of the paper's encoders say what a picture shows, and hardly where: CAVP takes the mean
over all places, and TimeChat's queries gather from all of them. Who reads motion beside them knows
where something moves, and not what it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
from einops import rearrange, reduce

from mfm_jax.encoders.encoder import Encoder, stack, stream
from mfm_jax.layers.norm import LayerNorm
from mfm_jax.mapper import Stream
from mfm_jax.media.windows import Seen, View
from mfm_jax.models.eva_vit import EvaViT
from mfm_jax.models.streams import GRID
from mfm_jax.models.timechat import TimeChat, TimeChatConfig, normalise
from mfm_jax.typing import Array, Float, UInt8

FPS = 3


class PatchFrames(NamedTuple):
    """Inputs for a batch of windows."""

    pixels: UInt8[Array, "B T H W 3"]
    seconds: Float[Array, "B T"]  # since the window's start


class PatchNetwork(NamedTuple):
    """The part of TimeChat that reads a frame by itself."""

    vit: EvaViT
    norm: LayerNorm


@jax.jit
def encode_patches(network: PatchNetwork, frames: PatchFrames) -> Stream:
    """Return one token for each frame: the mean patch of every place of a grid, side by side.

    The places are in rows from the top left.
    """
    pixels = rearrange(normalise(frames.pixels), "b t h w c -> (b t) h w c")
    patches = network.norm(network.vit(pixels))[:, 1:]  # the first token is the class token
    picture = rearrange(patches, "n (h w) d -> n h w d", h=network.vit.config.side)
    places = reduce(picture, "n (h p) (w q) d -> n h w d", "mean", h=GRID, w=GRID)
    tokens = rearrange(places, "(b t) h w d -> b t (h w d)", b=len(frames.seconds))
    return stream(tokens, frames.seconds)


class PatchEncoder(Encoder):
    """The vision transformer of the bundle's TimeChat, without what asks it."""

    title = "TimeChat's patches"
    encode = staticmethod(encode_patches)

    def __init__(self, config: TimeChatConfig, seconds: float, tensor: str = "") -> None:
        super().__init__(config, seconds, tensor)
        size = config.vit.image
        if config.vit.side % GRID:
            raise ValueError(
                f"its {config.vit.side} x {config.vit.side} patches cannot be divided into "
                f"{GRID} x {GRID} places"
            )
        self.view = View((size, size), "squash_bicubic", fps=FPS)

    def inputs(self, seen: Sequence[Seen]) -> PatchFrames:
        return PatchFrames(*stack(seen))

    def network(self, component: TimeChat) -> PatchNetwork:
        return PatchNetwork(component.vit, component.vit_norm)
