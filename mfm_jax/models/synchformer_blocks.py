"""The transformer block and the pooling that the parts of Synchformer share."""

from einops import repeat
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import MLP, Attention, layer_norm, table
from mfm_jax.typing import Array, Float


class Block(nnx.Module):
    """Pre-norm transformer block."""

    def __init__(
        self, width: int, heads: int, mlp_width: int, *, epsilon: float, rngs: nnx.Rngs
    ) -> None:
        self.attn_norm = layer_norm(width, epsilon=epsilon, rngs=rngs)
        self.attn = Attention(width, heads=heads, rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon=epsilon, rngs=rngs)
        self.mlp = MLP(width, mlp_width, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        x = x + self.attn(self.attn_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class ClassPool(nnx.Module):
    """Pool a sequence to what a class token of its own reads from it in one block.

    The original computes the block's output of all tokens and keeps the first (`motionformer.py`
    L275-375, `ast.py` L253-279).
    """

    def __init__(
        self, width: int, heads: int, mlp_width: int, *, epsilon: float, rngs: nnx.Rngs
    ) -> None:
        self.cls_token = table(width, rngs=rngs)
        self.block = Block(width, heads, mlp_width, epsilon=epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B D"]:
        first = repeat(self.cls_token[...], "d -> b 1 d", b=len(x)).astype(x.dtype)
        normed = self.block.attn_norm(jnp.concatenate([first, x], axis=1))
        y = first + self.block.attn(normed[:, :1], normed)
        return (y + self.block.mlp(self.block.mlp_norm(y)))[:, 0]
