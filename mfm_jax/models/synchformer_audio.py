"""Synchformer's audio tower: AST (arXiv 2104.01778) over the log-mel of segments of 0.64 s.

Tokens run by mel band and time: of T patches along time, patch `(f, t)` is token `2 + f * T + t`.
Tokens 0 and 1 are the class token and the distillation token.
"""

from dataclasses import dataclass

from einops import rearrange, repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import conv, layer_norm, table
from mfm_jax.layers.remat import run
from mfm_jax.models.synchformer_blocks import Block, ClassPool
from mfm_jax.typing import Array, Float

EPSILON = 1e-12  # of the LayerNorms of AST
POOL_EPSILON = 1e-6  # of those of the pooling


@dataclass(frozen=True)
class AudioTowerConfig:
    """Sizes of the tower and of a segment.

    Raises:
        ValueError: a segment is smaller than a patch.
    """

    columns: int = 66  # mel columns of a segment, 10 ms apart
    bins: int = 128  # mel bins
    patch: int = 16  # columns, and bins, of one square patch
    stride: tuple[int, int] = (10, 10)  # from one patch to the next: columns and bins
    width: int = 768
    depth: int = 12  # blocks
    heads: int = 12
    mlp_width: int = 3072

    def __post_init__(self) -> None:
        if self.patch > min(self.columns, self.bins):
            raise ValueError(f"{self.columns} x {self.bins} is smaller than a patch: {self.patch}")

    @property
    def grid(self) -> tuple[int, int]:
        """Patches along (time, mel); they overlap."""
        along = zip((self.columns, self.bins), self.stride, strict=True)
        time, mel = ((size - self.patch) // stride + 1 for size, stride in along)
        return time, mel

    @property
    def steps(self) -> int:
        """Steps of time in a segment, each of which gives one vector."""
        return self.grid[0]


class AudioTower(nnx.Module):
    """One vector for each step of a segment of sound."""

    def __init__(self, config: AudioTowerConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, heads, mlp_width = config.width, config.heads, config.mlp_width
        time, mel = config.grid
        size = (config.patch, config.patch)
        self.patch_embed = conv(1, width, size, strides=config.stride, rngs=rngs)
        self.cls_token = table(width, rngs=rngs)
        self.distillation_token = table(width, rngs=rngs)
        self.pos_embed = table(2 + mel * time, width, rngs=rngs)
        self.blocks = nnx.List(
            [
                Block(width, heads, mlp_width, epsilon=EPSILON, rngs=rngs)
                for _ in range(config.depth)
            ]
        )
        self.norm = layer_norm(width, epsilon=EPSILON, rngs=rngs)
        self.pool = ClassPool(width, heads, mlp_width, epsilon=POOL_EPSILON, rngs=rngs)

    def embed(self, mel: Float[Array, "B T M"]) -> Float[Array, "B L D"]:
        """Return the input of the first block: both special tokens and the patches.

        Raises:
            ValueError: the segment has other sizes than the config says.
        """
        sizes = (self.config.columns, self.config.bins)
        if mel.shape[1:] != sizes:
            raise ValueError(
                f"Synchformer reads log-mels of {sizes[0]} columns x {sizes[1]} bins, "
                f"got {mel.shape[1]} x {mel.shape[2]}"
            )
        patches = self.patch_embed(mel[..., None].astype(self.patch_embed.kernel.dtype))
        x = rearrange(patches, "b t f d -> b (f t) d")
        special = jnp.stack([self.cls_token[...], self.distillation_token[...]])
        first = repeat(special, "l d -> b l d", b=len(x))
        return jnp.concatenate([first, x], axis=1) + self.pos_embed[...][None]

    def __call__(self, mel: Float[Array, "B T M"]) -> Float[Array, "B T2 D"]:
        """Return one vector for each step; `mel` is that of `synchformer_mel`, bins last."""
        x = self.embed(mel)
        for block in self.blocks:
            x = run(block, x)
        patches = self.norm(x)[:, 2:]
        steps = self.config.steps
        pooled = self.pool(rearrange(patches, "b (f t) d -> (b t) f d", t=steps))
        return rearrange(pooled, "(b t) d -> b t d", t=steps)
