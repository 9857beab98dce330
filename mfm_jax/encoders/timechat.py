"""TimeChat's visual branch as an encoder: what happens, in frames spread over the window."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from einops import rearrange, repeat
from jax import numpy as jnp

from mfm_jax.encoders.encoder import Encoder, stack, stream
from mfm_jax.mapper import Stream
from mfm_jax.media.windows import Seen, timechat_view
from mfm_jax.models.timechat import TimeChat, TimeChatConfig, normalise
from mfm_jax.text.timestamps import timestamp_sentences
from mfm_jax.text.wordpiece import Vocabulary
from mfm_jax.text.wordpiece import encode as encode_sentences
from mfm_jax.typing import Array, Bool, Float, Int, UInt8


class TimeChatFrames(NamedTuple):
    """Inputs of TimeChat for a batch of windows."""

    pixels: UInt8[Array, "B T H W 3"]
    seconds: Float[Array, "B T"]  # since the window's start
    ids: Int[Array, "B T L"]  # tokens of the sentence that states the time of each frame
    mask: Bool[Array, "B T L"]


@partial(jax.jit, static_argnames="tensor")
def encode_timechat(timechat: TimeChat, frames: TimeChatFrames, *, tensor: str) -> Stream:
    """Return the tokens of each frame ("frame") or of the window ("video", "llama").

    Raises:
        ValueError: "llama" is asked of a branch without that projection.
    """
    tokens = timechat.encode(normalise(frames.pixels), frames.ids, frames.mask)
    if tensor == "frame":
        seen = rearrange(tokens.frames, "b t k d -> b (t k) d")
        return stream(seen, repeat(frames.seconds, "b t -> b (t k)", k=tokens.frames.shape[2]))
    tokens_of_all = tokens.video if tensor == "video" else tokens.llama
    if tokens_of_all is None:
        raise ValueError("this TimeChat has no llama tokens: use video or frame")
    return stream(tokens_of_all, timechat.config.token_seconds(frames.seconds))


class TimeChatEncoder(Encoder):
    """The bundle's TimeChat. All its timestamp sentences are padded to one length."""

    title = "TimeChat"
    tensors = ("video", "frame", "llama")
    encode = staticmethod(encode_timechat)

    def __init__(self, config: TimeChatConfig, seconds: float, tensor: str = "video") -> None:
        super().__init__(config, seconds, tensor)
        if tensor == "llama" and config.llama_width is None:
            raise ValueError("it has no llama tokens: use video or frame")
        self.view = timechat_view(config.frames, config.vit.image)
        self.options = {"tensor": tensor}
        self.vocabulary = config.vocabulary
        self.sentence = sentence_length(config.vocabulary, seconds)

    def inputs(self, seen: Sequence[Seen]) -> TimeChatFrames:
        encoded = [
            encode_sentences(
                timestamp_sentences(its.seconds), self.vocabulary, length=self.sentence
            )
            for its in seen
        ]
        return TimeChatFrames(
            *stack(seen),
            ids=jnp.asarray(np.stack([ids for ids, _ in encoded]), jnp.int32),
            mask=jnp.asarray(np.stack([mask for _, mask in encoded])),
        )


def sentence_length(vocabulary: Vocabulary, seconds: float) -> int:
    """Return the tokens of the longest timestamp sentence in a window.

    Raises:
        ValueError: the vocabulary cannot write one.
    """
    tenths = np.arange(0, seconds + 0.1, 0.1)
    ids, _ = encode_sentences(timestamp_sentences(tenths), vocabulary)
    return ids.shape[1]
