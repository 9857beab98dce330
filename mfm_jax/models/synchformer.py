"""Synchformer (arXiv 2401.16423): by how much a sound is early or late.

A video and its sound are cut into segments that overlap by half. Each tower encodes every segment
by itself, to a few vectors in order of time; the sync transformer reads those of several segments
and classifies the offset between the two. The vectors of the video tower serve as features, too.
"""

from dataclasses import dataclass, field

import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import layer_norm, linear, table
from mfm_jax.layers.remat import run
from mfm_jax.models.synchformer_audio import AudioTower, AudioTowerConfig
from mfm_jax.models.synchformer_blocks import Block
from mfm_jax.models.synchformer_video import VideoTower, VideoTowerConfig
from mfm_jax.typing import Array, Float

EPSILON = 1e-5  # of every LayerNorm of the sync transformer


@dataclass(frozen=True)
class SyncConfig:
    """Sizes of the sync transformer, and the offsets that it knows."""

    segments: int = 14  # that it reads at once
    width: int = 768
    depth: int = 3  # blocks
    heads: int = 8
    mlp_width: int = 3072
    offsets: int = 21  # classes, from -`largest` to `largest`
    largest: float = 2.0  # seconds

    def seconds(self) -> Float[np.ndarray, " V"]:
        """Return the offset in seconds of each class: by how much the sound is early."""
        return np.linspace(-self.largest, self.largest, self.offsets, dtype=np.float32)


@dataclass(frozen=True)
class SynchformerConfig:
    """Sizes of both towers and of the sync transformer, and the clock of the segments."""

    video: VideoTowerConfig = field(default_factory=VideoTowerConfig)
    audio: AudioTowerConfig = field(default_factory=AudioTowerConfig)
    sync: SyncConfig = field(default_factory=SyncConfig)
    fps: float = 25.0  # video frames per second

    @classmethod
    def released(cls) -> "SynchformerConfig":
        """The release of AudioSet, `24-01-04T16-39-21.pt`, which DeSync is computed with."""
        return cls()

    @classmethod
    def tiny(cls) -> "SynchformerConfig":
        """A variant for frames of 32 x 32 and windows of 1.6 s; about 1 M weights."""
        width, depth, heads, mlp_width = 96, 2, 4, 384
        return cls(
            VideoTowerConfig(
                image=(32, 32), patch=8, width=width, depth=depth, heads=heads, mlp_width=mlp_width
            ),
            AudioTowerConfig(width=width, depth=depth, heads=heads, mlp_width=mlp_width),
            SyncConfig(4, width, depth, heads, mlp_width, offsets=17, largest=0.8),
        )


class SyncTransformer(nnx.Module):
    """Classify the offset from the vectors of both towers."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs) -> None:
        self.segments = config.sync.segments
        width, depth = config.sync.width, config.sync.depth
        tokens = 2 + self.segments * (config.video.steps + config.audio.steps)
        self.video_proj = linear(config.video.width, width, (None, "embed"), rngs=rngs)
        self.audio_proj = linear(config.audio.width, width, (None, "embed"), rngs=rngs)
        self.video_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.audio_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        # As large as the vectors behind their norms: an offset is a matter of positions alone.
        self.offset_token = table(width, stddev=1.0, rngs=rngs)
        self.modality_token = table(width, stddev=1.0, rngs=rngs)
        self.pos_embed = table(tokens, width, stddev=1.0, rngs=rngs)
        heads, mlp_width = config.sync.heads, config.sync.mlp_width
        self.blocks = nnx.List(
            [Block(width, heads, mlp_width, epsilon=EPSILON, rngs=rngs) for _ in range(depth)]
        )
        self.norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.head = linear(width, config.sync.offsets, ("embed", None), rngs=rngs)

    def embed(
        self, video: Float[Array, "B S T D"], audio: Float[Array, "B S T2 E"]
    ) -> Float[Array, "B L D2"]:
        """Return the input of the first block: the tokens of video and of sound, each behind one.

        Raises:
            ValueError: there are more or fewer segments than the config says.
        """
        if (video.shape[1], audio.shape[1]) != (self.segments, self.segments):
            raise ValueError(
                f"Synchformer compares {self.segments} segments of video and of sound, "
                f"got {video.shape[1]} and {audio.shape[1]}"
            )
        v = self.video_norm(rearrange(self.video_proj(video), "b s t d -> b (s t) d"))
        a = self.audio_norm(rearrange(self.audio_proj(audio), "b s t d -> b (s t) d"))
        offset, modality = (
            repeat(token[...], "d -> b 1 d", b=len(v))
            for token in (self.offset_token, self.modality_token)
        )
        return jnp.concatenate([offset, v, modality, a], axis=1) + self.pos_embed[...][None]

    def __call__(
        self, video: Float[Array, "B S T D"], audio: Float[Array, "B S T2 E"]
    ) -> Float[Array, "B V"]:
        x = self.embed(video, audio)
        for block in self.blocks:
            x = run(block, x)
        return self.head(self.norm(x[:, 0]))


class Synchformer(nnx.Module):
    """Both towers and the sync transformer."""

    def __init__(self, config: SynchformerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.video = VideoTower(config.video, rngs=rngs)
        self.audio = AudioTower(config.audio, rngs=rngs)
        self.sync = SyncTransformer(config, rngs=rngs)

    def encode_video(self, frames: Float[Array, "B S T H W 3"]) -> Float[Array, "B S T2 D"]:
        """Encode segments of frames, RGB in -1 to 1 (`synchformer_video.normalise`)."""
        tokens = self.video(rearrange(frames, "b s t h w c -> (b s) t h w c"))
        return rearrange(tokens, "(b s) t d -> b s t d", b=len(frames))

    def encode_audio(self, mel: Float[Array, "B S T M"]) -> Float[Array, "B S T2 D"]:
        """Encode segments of `synchformer_mel`, bins last."""
        tokens = self.audio(rearrange(mel, "b s t m -> (b s) t m"))
        return rearrange(tokens, "(b s) t d -> b s t d", b=len(mel))

    def __call__(
        self, frames: Float[Array, "B S T H W 3"], mel: Float[Array, "B S T2 M"]
    ) -> Float[Array, "B V"]:
        """Return logits of the offset, one for each of `SyncConfig.seconds`."""
        return self.sync(self.encode_video(frames), self.encode_audio(mel))
