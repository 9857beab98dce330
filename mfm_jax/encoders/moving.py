"""What moves, as an encoder: TimeChat's patches where the picture changes, 25 times a second.

The tokens of the paper's encoders say what a picture shows, and hardly where: CAVP takes the mean
over all places, and TimeChat's queries gather from all of them. Motion says where something
happens, and not to what. Each token here is the mean of the patches of TimeChat's vision
transformer, in which a patch weighs as much as the picture changes there. A network that reads both
would have to learn this product of the two.
"""

from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange
from jax import lax
from jax import numpy as jnp

from mfm_jax.encoders.encoder import Encoder, Frames, stream
from mfm_jax.encoders.motion import FPS, changes
from mfm_jax.layers.norm import LayerNorm
from mfm_jax.mapper import Stream
from mfm_jax.media.windows import View
from mfm_jax.models.eva_vit import EvaViT
from mfm_jax.models.timechat import TimeChat, TimeChatConfig, normalise
from mfm_jax.typing import Array, Float, UInt8

EVERY = 8
"""The vision transformer sees one frame of so many; a token has the patches of the nearest one."""


class FrameNetwork(NamedTuple):
    """The part of TimeChat that reads a frame by itself."""

    vit: EvaViT
    norm: LayerNorm


@jax.jit
def encode_moving(network: FrameNetwork, frames: Frames) -> Stream:
    """Return one token for each frame: the mean of the patches, by how much each changes.

    The first frame of a window has no change, and all patches count alike.
    """
    batch, count = frames.seconds.shape
    some = rearrange(normalise(frames.pixels[:, ::EVERY]), "b t h w c -> (b t) h w c")
    patches = network.norm(network.vit(some))[:, 1:]  # the first is the class token
    patches = rearrange(patches, "(b t) p d -> b t p d", b=batch)
    weights = shares(frames.pixels, network.vit.config.side).astype(patches.dtype)
    # Frames with the same nearest one lie together: a copy of its patches for each is not needed.
    before = EVERY // 2
    groups = -(-(before + count) // EVERY)
    after = groups * EVERY - before - count
    weights = jnp.pad(weights, ((0, 0), (before, after), (0, 0)))
    weights = rearrange(weights, "b (g e) p -> b g e p", e=EVERY)
    nearest = np.minimum(np.arange(groups), patches.shape[1] - 1)
    tokens = jnp.einsum("bgep,bgpd->bged", weights, patches[:, nearest])
    tokens = rearrange(tokens, "b g e d -> b (g e) d")[:, before : before + count]
    return stream(tokens, frames.seconds)


def shares(pixels: UInt8[Array, "B T H W 3"], side: int) -> Float[Array, "B T P"]:
    """Return how much each of `side` x `side` places has of all change since the frame before.

    The change of a place is the square of the largest mean difference in grey levels within an
    eighth of the picture, so that what is struck counts beside what strikes it.
    """
    places, reach = changes(pixels, side), max(1, side // 8)
    window = (1, 1, 2 * reach + 1, 2 * reach + 1)
    largest = lax.reduce_window(places, -jnp.inf, lax.max, window, (1, 1, 1, 1), "SAME")
    weights = rearrange(largest, "b t h w -> b t (h w)") ** 2 + 1e-6
    return weights / weights.sum(axis=-1, keepdims=True)


class MovingEncoder(Encoder):
    """The vision transformer of the bundle's TimeChat, seen through the motion of the picture."""

    title = "what moves"
    encode = staticmethod(encode_moving)

    def __init__(self, config: TimeChatConfig, seconds: float, tensor: str = "") -> None:
        super().__init__(config, seconds, tensor)
        size = config.vit.image
        self.view = View((size, size), "squash_bicubic", fps=FPS)

    def network(self, component: TimeChat) -> FrameNetwork:
        return FrameNetwork(component.vit, component.vit_norm)
