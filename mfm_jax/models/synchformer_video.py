"""Synchformer's video tower: Motionformer (arXiv 2106.05392) with divided attention.

It reads segments of 16 frames, 0.64 s at 25 frames a second, each by itself. Tokens run by time,
row and column: of G patches in a frame, patch `g` of step `t` is token `1 + t * G + g`. Token 0 is
the class token.
"""

from dataclasses import dataclass

from einops import rearrange, repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import MLP, attend, layer_norm, linear, table
from mfm_jax.layers.remat import run
from mfm_jax.models.synchformer_blocks import ClassPool
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Float, UInt8

EPSILON = 1e-6  # of every LayerNorm

GROUPS = {"time": "b (t g) n k -> (b g) t n k", "space": "b (t g) n k -> (b t) g n k"}
"""How the patches of a segment form the groups that attend to each other."""


@dataclass(frozen=True)
class VideoTowerConfig:
    """Sizes of the tower and of a segment.

    Raises:
        ValueError: patches do not tile a segment.
    """

    frames: int = 16  # of a segment
    image: tuple[int, int] = (224, 224)  # pixels of a frame: height and width
    patch: int = 16  # height and width of a patch in pixels
    patch_frames: int = 2  # frames of a patch
    width: int = 768
    depth: int = 12  # blocks
    heads: int = 12
    mlp_width: int = 3072

    def __post_init__(self) -> None:
        if self.frames % self.patch_frames or any(side % self.patch for side in self.image):
            raise ValueError(
                f"patches of {self.patch_frames} frames and {self.patch} pixels do not tile "
                f"{self.frames} frames of {self.image[0]} x {self.image[1]}"
            )

    @property
    def steps(self) -> int:
        """Steps of time in a segment, each of which gives one vector."""
        return self.frames // self.patch_frames

    @property
    def patches(self) -> int:
        """Patches of one step."""
        height, width = self.image
        return (height // self.patch) * (width // self.patch)


def normalise(pixels: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B H W 3"]:
    """Return frames as the tower reads them: RGB in -1 to 1."""
    return (pixels.astype(jnp.float32) / 255.0 - 0.5) / 0.5


class DividedAttention(nnx.Module):
    """Attention of each patch to the class token and to the patches of its group.

    A group is one place at all times, or one time at all places. The class token attends to
    everything (`vit_helper.py` L100-158).
    """

    def __init__(self, width: int, heads: int, steps: int, over: str, *, rngs: nnx.Rngs) -> None:
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads, self.steps, self.groups = heads, steps, GROUPS[over]
        self.q = linear(width, width, ("embed", "heads"), rngs=rngs)
        self.k = linear(width, width, ("embed", "heads"), rngs=rngs)
        self.v = linear(width, width, ("embed", "heads"), rngs=rngs)
        self.o = linear(width, width, ("heads", "embed"), rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        q, k, v = (
            rearrange(project(x), "b l (n k) -> b l n k", n=self.heads)
            for project in (self.q, self.k, self.v)
        )
        first = attend(q[:, :1], k, v)
        groups = rearrange(q[:, 1:], self.groups, t=self.steps)
        rest = attend(groups, self._sources(k, len(groups)), self._sources(v, len(groups)))
        tokens, grouped = self.groups.split(" -> ")
        sizes = {"b": len(x), "t": self.steps}
        rest = rearrange(rest, f"{grouped} -> {tokens}", **sizes)
        y = rearrange(jnp.concatenate([first, rest], axis=1), "b l n k -> b l (n k)")
        return constrain(self.o(y), "batch")

    def _sources(self, x: Float[Array, "B L N K"], groups: int) -> Float[Array, "{groups} S N K"]:
        """Return what the patches of each of all groups read: the class token, then the group."""
        first = repeat(x[:, :1], "b 1 n k -> (b g) 1 n k", g=groups // len(x))
        group = rearrange(x[:, 1:], self.groups, t=self.steps)
        return jnp.concatenate([first, group], axis=1)


class VideoBlock(nnx.Module):
    """Pre-norm block: attention over time, then over space, then the feed-forward network."""

    def __init__(self, config: VideoTowerConfig, *, rngs: nnx.Rngs) -> None:
        width, heads, steps = config.width, config.heads, config.steps
        self.time_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.time_attn = DividedAttention(width, heads, steps, "time", rngs=rngs)
        self.space_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.space_attn = DividedAttention(width, heads, steps, "space", rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = MLP(width, config.mlp_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        x = x + self.time_attn(self.time_norm(x))
        x = x + self.space_attn(self.space_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class VideoTower(nnx.Module):
    """One vector for each step of two frames of a segment."""

    def __init__(self, config: VideoTowerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width = config.width
        values = config.patch_frames * config.patch**2 * 3
        self.patch_embed = linear(values, width, (None, "embed"), rngs=rngs)
        self.cls_token = table(width, rngs=rngs)
        self.pos_embed = table(1 + config.patches, width, rngs=rngs)  # the class token's first
        self.time_embed = table(config.steps, width, rngs=rngs)
        self.blocks = nnx.List([VideoBlock(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.pool = ClassPool(width, config.heads, config.mlp_width, epsilon=EPSILON, rngs=rngs)

    def patchify(self, frames: Float[Array, "B T H W 3"]) -> Float[Array, "B G C"]:
        """Cut a segment into patches, flattened by frame, row, column and colour.

        Raises:
            ValueError: the segment has other sizes than the config says.
        """
        sizes = (self.config.frames, *self.config.image)
        if frames.shape[1:4] != sizes:
            raise ValueError(
                f"Synchformer reads segments of {sizes[0]} frames of {sizes[1]} x {sizes[2]}, "
                f"got {frames.shape[1]} of {frames.shape[2]} x {frames.shape[3]}"
            )
        pattern = "b (t p) (h q) (w r) c -> b (t h w) (p q r c)"
        patch = self.config.patch
        return rearrange(frames, pattern, p=self.config.patch_frames, q=patch, r=patch)

    def embed(self, frames: Float[Array, "B T H W 3"]) -> Float[Array, "B L D"]:
        """Return the input of the first block: the class token and the patches, with positions."""
        patches = self.patchify(frames).astype(self.patch_embed.kernel.dtype)
        places = self.pos_embed[...]
        positions = rearrange(
            self.time_embed[...][:, None] + places[None, 1:], "t g d -> 1 (t g) d"
        )
        x = self.patch_embed(patches) + positions
        first = repeat(self.cls_token[...] + places[0], "d -> b 1 d", b=len(x))
        return jnp.concatenate([first, x], axis=1)

    def __call__(self, frames: Float[Array, "B T H W 3"]) -> Float[Array, "B T2 D"]:
        """Return one vector for each step; `frames` are those of `normalise`."""
        x = self.embed(frames)
        for block in self.blocks:
            x = run(block, x)
        patches = rearrange(self.norm(x[:, 1:]), "b (t g) d -> (b t) g d", t=self.config.steps)
        return rearrange(self.pool(patches), "(b t) d -> b t d", t=self.config.steps)
