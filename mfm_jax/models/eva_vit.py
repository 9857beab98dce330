"""EVA-CLIP's vision transformer as TimeChat and BLIP-2 use it: no final norm, pooling or head.

EVA (arXiv 2211.07636), EVA-CLIP g/14; TimeChat `timechat/models/eva_vit.py`.
"""

from dataclasses import dataclass

from einops import rearrange
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import MLP, Attention, conv, layer_norm, table
from mfm_jax.layers.remat import run
from mfm_jax.typing import Array, Float


@dataclass(frozen=True)
class EvaViTConfig:
    """Sizes of the vision transformer."""

    image: int  # pixels, height and width
    patch: int  # pixels, height and width of one token
    width: int
    depth: int  # blocks
    heads: int
    mlp_width: int  # of the feed-forward networks
    epsilon: float = 1e-6  # of every LayerNorm in the blocks (eva_vit.py:428)

    def __post_init__(self) -> None:
        if self.image % self.patch:
            raise ValueError(f"patches of {self.patch} do not tile an image of {self.image} pixels")

    @property
    def side(self) -> int:
        """Patches in a row of an image, and in a column."""
        return self.image // self.patch

    @property
    def tokens(self) -> int:
        """Tokens per image: one per patch, and the class token."""
        return self.side**2 + 1

    @classmethod
    def eva_clip_g(cls) -> "EvaViTConfig":
        """The released 1 B model; the last of EVA's 40 blocks is not built (eva_vit.py:415-430)."""
        return cls(image=224, patch=14, width=1408, depth=39, heads=16, mlp_width=6144)

    @classmethod
    def tiny(cls) -> "EvaViTConfig":
        """For 64 x 64 frames, 0.25 M parameters."""
        return cls(image=64, patch=8, width=96, depth=2, heads=4, mlp_width=384)


class Block(nnx.Module):
    """Pre-norm residual block; the keys have no bias."""

    def __init__(self, config: EvaViTConfig, *, rngs: nnx.Rngs) -> None:
        self.attn_norm = layer_norm(config.width, epsilon=config.epsilon, rngs=rngs)
        self.attn = Attention(config.width, heads=config.heads, biases="qvo", rngs=rngs)
        self.mlp_norm = layer_norm(config.width, epsilon=config.epsilon, rngs=rngs)
        self.mlp = MLP(config.width, config.mlp_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class EvaViT(nnx.Module):
    """Vision transformer: a class token, then one token per patch of an image, row by row."""

    def __init__(self, config: EvaViTConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        size = (config.patch, config.patch)
        self.patch = conv(3, config.width, size, strides=size, rngs=rngs)
        self.class_token = table(config.width, rngs=rngs)
        self.positions = table(config.tokens, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])

    def embed(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B L D"]:
        """Return class token and patches, with their positions.

        Raises:
            ValueError: the images are not of the configured size.
        """
        size = self.config.image
        if pixels.shape[1:3] != (size, size):
            raise ValueError(f"images are {pixels.shape[1:3]} pixels, this network takes {size}")
        patches = self.patch(pixels.astype(self.patch.kernel.dtype))
        x = rearrange(patches, "b h w d -> b (h w) d")
        first = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[2]))
        return jnp.concatenate([first, x], axis=1) + self.positions[...][None]

    def __call__(self, pixels: Float[Array, "B H W C"]) -> Float[Array, "B L D"]:
        x = self.embed(pixels)
        for block in self.blocks:
            x = run(block, x)
        return x
