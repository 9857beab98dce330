"""Synchformer's video tower: Motionformer (arXiv 2106.05392) with divided attention.

It reads segments of 16 frames, 0.64 s at 25 frames a second, each by itself. A step is two frames;
its G patches run by row and column. The class token is kept apart from the patches.
"""

from dataclasses import dataclass
from functools import partial

from einops import rearrange, repeat
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers import KV, MLP, attend, layer_norm, linear, table
from mfm_jax.layers.attention import attend_to_all
from mfm_jax.layers.remat import run
from mfm_jax.models.synchformer_blocks import ClassPool
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Float, UInt8

EPSILON = 1e-6  # of every LayerNorm

GROUPS = {"time": "b t g n k -> (b g) t n k", "space": "b t g n k -> (b t) g n k"}
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


def attend_to_patches(
    q: Float[Array, "B 1 N K"], first: KV, patches: KV
) -> Float[Array, "B 1 N K"]:
    """Let the class token attend to itself and to all patches, in one softmax.

    The axes of the patches stay apart: to merge them is a copy on a TPU, and the gradients of one
    step after the other would each be padded to the size of all.
    """
    dtype, scale = q.dtype, q.shape[-1] ** -0.5
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    own = dot("bnk,bonk->bno", q[:, 0], first.k) * scale
    scores = dot("bnk,btgnk->bntg", q[:, 0], patches.k) * scale
    top = lax.stop_gradient(jnp.maximum(own, scores.max(axis=(2, 3))[..., None]))
    own, weights = jnp.exp(own - top), jnp.exp(scores - top[..., None])
    total = own + weights.sum(axis=(2, 3))[..., None]
    read = jnp.einsum("bntg,btgnk->bnk", weights.astype(dtype), patches.v)
    y = (read + own.astype(dtype) * first.v[:, 0]) / total.astype(dtype)
    return y[:, None]


class DividedAttention(nnx.Module):
    """Attention of each patch to the class token and to the patches of its group.

    A group is one place at all times, or one time at all places. The class token attends to
    everything (`vit_helper.py` L100-158). It is kept apart from the patches, which would have to be
    copied to get at them otherwise.
    """

    def __init__(self, width: int, heads: int, over: str, *, rngs: nnx.Rngs) -> None:
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads, self.over = heads, over
        self.q = linear(width, width, ("embed", "heads"), rngs=rngs)
        self.k = linear(width, width, ("embed", "heads"), rngs=rngs)
        self.v = linear(width, width, ("embed", "heads"), rngs=rngs)
        self.o = linear(width, width, ("heads", "embed"), rngs=rngs)

    def __call__(
        self, first: Float[Array, "B 1 D"], patches: Float[Array, "B T G D"]
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "B T G D"]]:
        q0, k0, v0 = (self._split(project(first)) for project in (self.q, self.k, self.v))
        q, k, v = (self._split(project(patches)) for project in (self.q, self.k, self.v))
        y0 = attend_to_patches(q0, KV(k0, v0), KV(k, v))
        return self._merge(y0), self._merge(self._attend_in_groups(q, KV(k, v), KV(k0, v0)))

    def _attend_in_groups(
        self, q: Float[Array, "B T G N K"], patches: KV, first: KV
    ) -> Float[Array, "B T G N K"]:
        pattern = GROUPS[self.over]
        tokens, grouped = pattern.split(" -> ")
        queries, k, v = (rearrange(x, pattern) for x in (q, *patches))
        count = len(queries) // len(q)
        k0, v0 = (repeat(x, "b 1 n k -> (b m) 1 n k", m=count) for x in first)
        if self.over == "time":  # too few keys for a kernel to be worth a copy of them
            y = attend_to_all(queries, [(KV(k0, v0), None), (KV(k, v), None)])
        else:
            y = attend(queries, jnp.concatenate([k0, k], axis=1), jnp.concatenate([v0, v], axis=1))
        return rearrange(y, f"{grouped} -> {tokens}", b=len(q), t=q.shape[1])

    def _split(self, x: Float[Array, "*B NK"]) -> Float[Array, "*B N K"]:
        return rearrange(x, "... (n k) -> ... n k", n=self.heads)

    def _merge(self, x: Float[Array, "*B N K"]) -> Float[Array, "*B D"]:
        return constrain(self.o(rearrange(x, "... n k -> ... (n k)")), "batch")


class VideoBlock(nnx.Module):
    """Pre-norm block: attention over time, then over space, then the feed-forward network."""

    def __init__(self, config: VideoTowerConfig, *, rngs: nnx.Rngs) -> None:
        width, heads = config.width, config.heads
        self.time_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.time_attn = DividedAttention(width, heads, "time", rngs=rngs)
        self.space_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.space_attn = DividedAttention(width, heads, "space", rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = MLP(width, config.mlp_width, rngs=rngs)

    def __call__(
        self, first: Float[Array, "B 1 D"], patches: Float[Array, "B T G D"]
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "B T G D"]]:
        for norm, attn in (
            (self.time_norm, self.time_attn),
            (self.space_norm, self.space_attn),
        ):
            y0, y = attn(norm(first), norm(patches))
            first, patches = first + y0, patches + y
        first = first + self.mlp(self.mlp_norm(first))
        return first, patches + self.mlp(self.mlp_norm(patches))


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

    def patchify(self, frames: Float[Array, "B T H W 3"]) -> Float[Array, "B T2 G C"]:
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
        pattern = "b (t p) (h q) (w r) c -> b t (h w) (p q r c)"
        patch = self.config.patch
        return rearrange(frames, pattern, p=self.config.patch_frames, q=patch, r=patch)

    def embed(
        self, frames: Float[Array, "B T H W 3"]
    ) -> tuple[Float[Array, "B 1 D"], Float[Array, "B T2 G D"]]:
        """Return the input of the first block: the class token and the patches, with positions."""
        patches = self.patchify(frames).astype(self.patch_embed.kernel.dtype)
        places = self.pos_embed[...]
        positions = self.time_embed[...][:, None] + places[None, 1:]
        first = repeat(self.cls_token[...] + places[0], "d -> b 1 d", b=len(frames))
        return first, self.patch_embed(patches) + positions[None]

    def __call__(self, frames: Float[Array, "B T H W 3"]) -> Float[Array, "B T2 D"]:
        """Return one vector for each step; `frames` are those of `normalise`."""
        first, patches = self.embed(frames)
        for block in self.blocks:
            first, patches = run(block, first, patches)
        pooled = self.pool(rearrange(self.norm(patches), "b t g d -> (b t) g d"))
        return rearrange(pooled, "(b t) d -> b t d", b=len(frames))
