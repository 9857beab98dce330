"""From the frames of a window to the tokens of both video encoders.

Generation and feature extraction share this, so that a mapper is trained on what it will read.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange, repeat
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.mapper import Stream, Streams
from mfm_jax.media.windows import Window, WindowSpec
from mfm_jax.models.cavp import CAVPVideo
from mfm_jax.models.timechat import TimeChat, normalise
from mfm_jax.runtime.sharding import constrain
from mfm_jax.text.timestamps import timestamp_sentences
from mfm_jax.text.wordpiece import Vocabulary
from mfm_jax.text.wordpiece import encode as encode_sentences
from mfm_jax.typing import Array, Bool, Float, Int, UInt8


class CAVPFrames(NamedTuple):
    """What CAVP reads of a batch of windows."""

    pixels: UInt8[Array, "B T H W 3"]
    seconds: Float[Array, "B T"]  # since the window's start


class TimeChatFrames(NamedTuple):
    """What TimeChat reads of a batch of windows."""

    pixels: UInt8[Array, "B T H W 3"]
    seconds: Float[Array, "B T"]  # since the window's start
    ids: Int[Array, "B T L"]  # of the sentence that tells each frame's time
    mask: Bool[Array, "B T L"]


class Frames(NamedTuple):
    """What both video encoders read of a batch of windows."""

    cavp: CAVPFrames
    timechat: TimeChatFrames


def encode_video(cavp: CAVPVideo, timechat: TimeChat, frames: Frames, *, tensor: str) -> Streams:
    """The tokens of both encoders; `tensor` is the TimeChat output that the mapper reads."""
    return {
        "cavp": encode_cavp(cavp, frames.cavp),
        "timechat": encode_timechat(timechat, frames.timechat, tensor=tensor),
    }


@jax.jit
def encode_cavp(cavp: CAVPVideo, frames: CAVPFrames) -> Stream:
    """What sounds: a token for each frame, at the frame's own time."""
    return _divided(cavp(frames.pixels.astype(jnp.float32) / 255.0), frames.seconds)


@partial(jax.jit, static_argnames="tensor")
def encode_timechat(timechat: TimeChat, frames: TimeChatFrames, *, tensor: str) -> Stream:
    """What happens: the tokens of each frame ("frame"), or of all ("video", "llama").

    Raises:
        ValueError: "llama" of a branch without that projection.
    """
    tokens = timechat.encode(normalise(frames.pixels), frames.ids, frames.mask)
    if tensor == "frame":
        seen = rearrange(tokens.frames, "b t k d -> b (t k) d")
        return _divided(seen, repeat(frames.seconds, "b t -> b (t k)", k=tokens.frames.shape[2]))
    tokens_of_all = tokens.video if tensor == "video" else tokens.llama
    if tokens_of_all is None:
        raise ValueError("this TimeChat has no llama tokens: use video or frame")
    return _divided(tokens_of_all, timechat.config.token_seconds(frames.seconds))


def _divided(tokens: Float[Array, "B T D"], seconds: Float[Array, "B T"]) -> Stream:
    """On several devices each has the tokens of its windows, as what reads them expects."""
    return Stream(constrain(tokens, "batch"), constrain(seconds, "batch"))


def window_spec(bundle: Bundle) -> WindowSpec:
    """What this bundle's encoders see of a window; the default for an encoder it does not have."""
    spec = WindowSpec(bundle.settings.seconds, bundle.settings.overlap)
    if "cavp" in bundle.entries:
        cavp = bundle.config("cavp")
        spec = replace(spec, cavp_fps=cavp.fps, cavp_size=cavp.size)
    if "timechat" in bundle.entries:
        timechat = bundle.config("timechat")
        spec = replace(spec, timechat_frames=timechat.frames, timechat_size=timechat.vit.image)
    return spec


def sentence_length(bundle: Bundle) -> int:
    """Tokens of the longest timestamp sentence of a window: shapes stay fixed under `jit`."""
    tenths = np.arange(0, bundle.settings.seconds + 0.1, 0.1)
    ids, _ = encode_sentences(timestamp_sentences(tenths), bundle.config("timechat").vocabulary)
    return ids.shape[1]


def stack_cavp(windows: Sequence[Window]) -> CAVPFrames:
    """CAVP's frames of `windows` as one batch."""
    return CAVPFrames(
        pixels=jnp.asarray(np.stack([w.cavp_THWC for w in windows])),
        seconds=jnp.asarray(np.stack([w.cavp_seconds for w in windows]), jnp.float32),
    )


def stack_timechat(
    windows: Sequence[Window], vocabulary: Vocabulary, sentence: int
) -> TimeChatFrames:
    """TimeChat's frames of `windows` as one batch, with the timestamps that it reads."""
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
