"""Synchformer's video tower as an encoder: what moves, in segments of 16 frames at 25 a second."""

from functools import partial

import jax
from einops import rearrange, reduce
from jax import numpy as jnp

from mfm_jax.encoders.encoder import Encoder, Frames, stream
from mfm_jax.mapper import Stream
from mfm_jax.media.segments import segments
from mfm_jax.media.windows import View
from mfm_jax.models.synchformer import Synchformer, SynchformerConfig
from mfm_jax.models.synchformer_video import VideoTower, normalise


@jax.jit
def encode_synchformer(tower: VideoTower, frames: Frames) -> Stream:
    """Return one token for each step of each segment, at the middle of the step's frames.

    Segments overlap by half, so most moments have two tokens. Frames at the end that fill no
    segment are not read. These are the features of MMAudio (`features_utils.py` L112-128).
    """
    cut = jax.vmap(partial(segments, length=tower.config.frames))
    pixels, moments = jnp.asarray(cut(frames.pixels)), jnp.asarray(cut(frames.seconds))
    tokens = tower(rearrange(normalise(pixels), "b s t h w c -> (b s) t h w c"))
    seconds = reduce(moments, "b s (t p) -> b (s t)", "mean", p=tower.config.patch_frames)
    return stream(rearrange(tokens, "(b s) t d -> b (s t) d", b=len(seconds)), seconds)


class SynchformerEncoder(Encoder):
    """The video tower of the bundle's Synchformer; the rest of it is left out."""

    title = "Synchformer"
    encode = staticmethod(encode_synchformer)

    def __init__(self, config: SynchformerConfig, seconds: float, tensor: str = "") -> None:
        super().__init__(config, seconds, tensor)
        self.view = View(config.video.image, "cover_bicubic", fps=config.fps)
        if self.view.count(seconds) < config.video.frames:
            raise ValueError(
                f"windows of {seconds:g} s are shorter than its segments of {config.video.frames} "
                f"frames at {config.fps:g} a second"
            )

    def network(self, component: Synchformer) -> VideoTower:
        return component.video
