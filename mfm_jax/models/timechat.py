"""TimeChat's visual branch: frames that know their time, and video tokens that have read them.

Each frame goes through the EVA vision transformer and the image Q-Former, which also reads a
sentence with the frame's time; the video Q-Former then reads windows of frames. TimeChat (arXiv
2312.02051), `timechat/models/timechat.py`. Its language model is not part of this.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from einops import rearrange, repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import layer_norm, linear, table
from mfm_jax.models.eva_vit import EvaViT, EvaViTConfig
from mfm_jax.models.qformer import QFormer, QFormerConfig
from mfm_jax.text.wordpiece import Vocabulary, tiny_timestamp_vocabulary
from mfm_jax.typing import Array, Bool, Float, Int, UInt8

# CLIP's, of red, green and blue in 0..1 (video_processor.py:214-230).
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class TimeChatConfig:
    """Sizes of the branch, and its vocabulary for times."""

    vit: EvaViTConfig
    image_qformer: QFormerConfig
    video_qformer: QFormerConfig
    frames: int  # maximum per clip: rows of the table of frame positions
    window: int  # frames that the video Q-Former reads at once; 0: all of the clip
    stride: int  # frames between the starts of two windows; not read when window is 0
    llama_width: int | None  # of the language model's tokens; None: without that projection
    vocabulary: Vocabulary  # pieces of the timestamp sentence and their ids, for wordpiece.encode

    def __post_init__(self) -> None:
        image, video = self.image_qformer, self.video_qformer
        if (image.context_width, video.context_width) != (self.vit.width, image.width):
            raise ValueError(
                f"the Q-Formers read widths {image.context_width} and {video.context_width}, "
                f"but are given {self.vit.width} and {image.width}"
            )
        if self.window > 0 and self.stride < 1:
            raise ValueError(f"windows need a stride of at least one frame, not {self.stride}")

    @classmethod
    def timechat_7b(cls, vocabulary: Vocabulary) -> "TimeChatConfig":
        """The released sizes; `vocabulary` is `timestamp_vocabulary` of bert-base-uncased."""
        return cls(
            vit=EvaViTConfig.eva_clip_g(),
            image_qformer=QFormerConfig.image(),
            video_qformer=QFormerConfig.video(),
            frames=96,
            window=32,
            stride=32,
            llama_width=4096,
            vocabulary=vocabulary,
        )

    @classmethod
    def tiny(cls) -> "TimeChatConfig":
        """8 frames of 64 x 64 to 2 query and 12 text tokens each, and 16 video tokens of 96."""
        vocabulary = tiny_timestamp_vocabulary()
        return cls(
            vit=EvaViTConfig.tiny(),
            image_qformer=QFormerConfig(
                queries=2,
                width=96,
                context_width=96,
                depth=2,
                heads=4,
                mlp_width=192,
                cross_every=2,
                words=len(vocabulary),
                positions=32,
            ),
            video_qformer=QFormerConfig(
                queries=16,
                width=96,
                context_width=96,
                depth=2,
                heads=4,
                mlp_width=192,
                cross_every=1,
            ),
            frames=8,
            window=8,
            stride=8,
            llama_width=None,
            vocabulary=vocabulary,
        )

    def windows(self, frames: int) -> list[range]:
        """Return the frames of each window; windows that the clip's end cuts are shorter."""
        if self.window <= 0:
            return [range(frames)]
        starts = range(0, frames, self.stride)
        return [range(s, min(s + self.window, frames)) for s in starts]

    def token_seconds(self, frame_seconds: Float[Array, "B T"]) -> Float[Array, "B S"]:
        """Return the time of each video token, in seconds: the middle of its window's frames.

        The tokens of a frame have the time of their frame.
        """
        windows = self.windows(frame_seconds.shape[1])
        first = jnp.array([w[0] for w in windows])
        last = jnp.array([w[-1] for w in windows])
        middle = (frame_seconds[:, first] + frame_seconds[:, last]) / 2.0
        return repeat(middle, "b w -> b (w q)", q=self.video_qformer.queries)


class TimeChatTokens(NamedTuple):
    """Tokens that a mapper may read; under `jit` those that are not used are not computed."""

    frames: Float[Array, "B T Q D"]  # per frame the queries, then the sentence, padding included
    video: Float[Array, "B S D"]  # per window the video queries
    llama: Float[Array, "B S C"] | None  # `video` in the width of the language model


def normalise(pixels: UInt8[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
    """Return 8-bit RGB frames as the network takes them, in float32 (video_processor.py:82-91)."""
    mean, std = (jnp.array(x, jnp.float32)[None, None, None, None] for x in (PIXEL_MEAN, PIXEL_STD))
    return (pixels.astype(jnp.float32) / 255.0 - mean) / std


class TimeChat(nnx.Module):
    """The visual branch: tokens of frames and of the sentences with their times."""

    def __init__(self, config: TimeChatConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, llama_width = config.video_qformer.width, config.llama_width
        self.vit = EvaViT(config.vit, rngs=rngs)
        # The blocks of the ViT have an epsilon of 1e-6.
        self.vit_norm = layer_norm(config.vit.width, epsilon=1e-5, rngs=rngs)
        self.image_qformer = QFormer(config.image_qformer, rngs=rngs)
        # As torch's nn.Embedding starts: the tokens it is added to have unit variance.
        self.frame_positions = table(
            config.frames, config.image_qformer.width, rngs=rngs, stddev=1.0
        )
        self.video_qformer = QFormer(config.video_qformer, rngs=rngs)
        self.llama = (
            linear(width, llama_width, ("embed", "mlp"), rngs=rngs) if llama_width else None
        )

    def read_frames(
        self,
        pixels: Float[Array, "B T H W C"],
        ids: Int[Array, "B T L"] | None = None,
        mask: Bool[Array, "B T L"] | None = None,
    ) -> Float[Array, "B T Q D"]:
        """Return each frame's tokens, with the frame's position in the clip added.

        Raises:
            ValueError: the clip has more frames than there are positions.
        """
        batch, frames = pixels.shape[:2]
        if frames > self.config.frames:
            raise ValueError(f"{frames} frames, at most {self.config.frames} fit: take fewer")
        features = self.vit_norm(self.vit(rearrange(pixels, "b t h w c -> (b t) h w c")))
        flat = (None if x is None else rearrange(x, "b t l -> (b t) l") for x in (ids, mask))
        x = rearrange(self.image_qformer(features, *flat), "(b t) k d -> b t k d", b=batch)
        return x + self.frame_positions[:frames][None, :, None, :]

    def read_windows(self, frames: Float[Array, "B T Q D"]) -> Float[Array, "B S D"]:
        """Return the video queries of every window, which read only the window's own frames.

        Padded text is read as well, as in the original (docs/FAQ.md, item 4.2).
        """
        parts = []
        for _, same in groupby(self.config.windows(frames.shape[1]), key=len):
            stacked = jnp.stack([frames[:, w.start : w.stop] for w in same], axis=1)
            context = rearrange(stacked, "b w t k d -> (b w) (t k) d")
            tokens = self.video_qformer(context)
            parts.append(rearrange(tokens, "(b w) q d -> b (w q) d", b=frames.shape[0]))
        return jnp.concatenate(parts, axis=1)

    def encode(
        self,
        pixels: Float[Array, "B T H W C"],
        ids: Int[Array, "B T L"],
        mask: Bool[Array, "B T L"],
    ) -> TimeChatTokens:
        """Return tokens of normalised frames and their timestamps.

        `pixels` come from `normalise`, `ids` and `mask` from `wordpiece.encode`.

        Raises:
            ValueError: too many frames, or frames of another size than the config's.
        """
        frames = self.read_frames(pixels, ids, mask)
        video = self.read_windows(frames)
        return TimeChatTokens(frames, video, None if self.llama is None else self.llama(video))
