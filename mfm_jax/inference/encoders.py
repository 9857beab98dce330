"""The frames of a window become the tokens of both video encoders, and a sound those of AudioMAE.

Generation and feature extraction share this code, so a mapper is trained on the tokens that it will
read in generation.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange, repeat
from jax import numpy as jnp

from mfm_jax.mapper import Stream, Streams
from mfm_jax.media.windows import Window
from mfm_jax.models.audiomae import LOA, AudioMAE, pool_loa
from mfm_jax.models.cavp import CAVPVideo
from mfm_jax.models.cnn14 import Cnn14Tagger
from mfm_jax.models.timechat import TimeChat, normalise
from mfm_jax.runtime.compiled import NO_PROGRAMS, Programs
from mfm_jax.runtime.sharding import constrain
from mfm_jax.text.timestamps import timestamp_sentences
from mfm_jax.text.wordpiece import Vocabulary
from mfm_jax.text.wordpiece import encode as encode_sentences
from mfm_jax.typing import Array, Bool, Float, Int, UInt8


class CAVPFrames(NamedTuple):
    """Inputs of CAVP for a batch of windows."""

    pixels: UInt8[Array, "B T H W 3"]
    seconds: Float[Array, "B T"]  # since the window's start


class TimeChatFrames(NamedTuple):
    """Inputs of TimeChat for a batch of windows."""

    pixels: UInt8[Array, "B T H W 3"]
    seconds: Float[Array, "B T"]  # since the window's start
    ids: Int[Array, "B T L"]  # tokens of the sentence that states the time of each frame
    mask: Bool[Array, "B T L"]


class Frames(NamedTuple):
    """Inputs of both video encoders for a batch of windows."""

    cavp: CAVPFrames
    timechat: TimeChatFrames


def encode_video(
    cavp: CAVPVideo,
    timechat: TimeChat,
    frames: Frames,
    *,
    tensor: str,
    programs: Programs = NO_PROGRAMS,
) -> Streams:
    """Return the tokens of both encoders; `tensor` is the TimeChat output that the mapper reads."""
    return {
        "cavp": programs(encode_cavp, cavp, frames.cavp),
        "timechat": programs(encode_timechat, timechat, frames.timechat, tensor=tensor),
    }


@jax.jit
def encode_cavp(cavp: CAVPVideo, frames: CAVPFrames) -> Stream:
    """Encode what may sound: one CAVP token for each frame, at the time of the frame."""
    return _sharded(cavp(frames.pixels.astype(jnp.float32) / 255.0), frames.seconds)


@partial(jax.jit, static_argnames="tensor")
def encode_timechat(timechat: TimeChat, frames: TimeChatFrames, *, tensor: str) -> Stream:
    """Encode what happens: tokens of each frame ("frame") or of the window ("video", "llama").

    Raises:
        ValueError: "llama" is asked of a branch without that projection.
    """
    tokens = timechat.encode(normalise(frames.pixels), frames.ids, frames.mask)
    if tensor == "frame":
        seen = rearrange(tokens.frames, "b t k d -> b (t k) d")
        return _sharded(seen, repeat(frames.seconds, "b t -> b (t k)", k=tokens.frames.shape[2]))
    tokens_of_all = tokens.video if tensor == "video" else tokens.llama
    if tokens_of_all is None:
        raise ValueError("this TimeChat has no llama tokens: use video or frame")
    return _sharded(tokens_of_all, timechat.config.token_seconds(frames.seconds))


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
    return jnp.asarray(pool_loa(tokens, grid.grid, grid.pool))


@jax.jit
def encode_cnn14(
    cnn14: Cnn14Tagger, mel: Float[Array, "B T M"]
) -> tuple[Float[Array, "B D"], Float[Array, "B V"]]:
    """Return the embedding of sounds and the logits of AudioSet's classes."""
    return cnn14(mel)


def _sharded(tokens: Float[Array, "B T D"], seconds: Float[Array, "B T"]) -> Stream:
    """Shard the tokens over the devices by window, as the mapper expects them."""
    return Stream(constrain(tokens, "batch"), constrain(seconds, "batch"))


def stack_cavp(windows: Sequence[Window]) -> CAVPFrames:
    """Stack CAVP's frames of `windows` as one batch."""
    return CAVPFrames(
        pixels=jnp.asarray(np.stack([w.cavp_THWC for w in windows])),
        seconds=jnp.asarray(np.stack([w.cavp_seconds for w in windows]), jnp.float32),
    )


def stack_timechat(
    windows: Sequence[Window], vocabulary: Vocabulary, sentence: int
) -> TimeChatFrames:
    """Stack TimeChat's frames of `windows` as one batch, with the timestamps that it reads."""
    encoded = [
        encode_sentences(timestamp_sentences(w.timechat_seconds), vocabulary, length=sentence)
        for w in windows
    ]
    return TimeChatFrames(
        pixels=jnp.asarray(np.stack([w.timechat_THWC for w in windows])),
        seconds=jnp.asarray(np.stack([w.timechat_seconds for w in windows]), jnp.float32),
        ids=jnp.asarray(np.stack([ids for ids, _ in encoded]), jnp.int32),
        mask=jnp.asarray(np.stack([mask for _, mask in encoded])),
    )
