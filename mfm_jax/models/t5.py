"""The encoder of FLAN-T5 (arXiv 1910.10683, 2210.11416), which reads AudioLDM2's captions."""

from dataclasses import dataclass

import numpy as np
from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import Attention, embedding, linear
from mfm_jax.layers.mlp import gelu_tanh
from mfm_jax.typing import Array, Bool, Float, Int


@dataclass(frozen=True)
class T5Config:
    """Sizes of a T5 v1.1 encoder."""

    vocab: int = 32128  # pieces of the sentencepiece model, padded
    width: int = 1024
    depth: int = 24  # blocks
    heads: int = 16
    head_dim: int = 64  # heads * head_dim need not be the width
    mlp_width: int = 2816  # of the gated feed-forward network
    buckets: int = 32  # learned biases per head: half for keys before, half for keys after
    max_distance: int = 128  # distance in tokens from which all keys share a bucket
    epsilon: float = 1e-6  # of every norm

    @classmethod
    def flan_t5_large(cls) -> "T5Config":
        """The text encoder of every released AudioLDM2."""
        return cls()

    @classmethod
    def tiny(cls) -> "T5Config":
        """For tests: a vocabulary of bytes, not of pieces."""
        return cls(vocab=384, width=64, depth=2, heads=4, head_dim=16, mlp_width=160)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "L S"]:
    """Return the number of the learned bias that serves query `l` and key `s` of one sequence.

    Each direction has half of the buckets. Half of those serve one distance each, the others serve
    distances on a logarithmic scale up to `max_distance`, and the last one all beyond.
    """
    side = buckets // 2
    exact = side // 2
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    # In float32, as the original: the bucket of a distance on a border depends on the rounding.
    ratio = np.maximum(distance, 1).astype(np.float32) / np.float32(exact)
    scale = np.float32(np.log(max_distance / exact))
    far = exact + (np.log(ratio) / scale * np.float32(side - exact)).astype(np.int32)
    bucket = np.where(distance < exact, distance, np.minimum(far, side - 1))
    return (bucket + side * (offset > 0)).astype(np.int32)


def rms_norm(width: int, epsilon: float, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    """Return T5's LayerNorm, which has neither a mean nor a bias."""
    return nnx.RMSNorm(width, epsilon=epsilon, scale_metadata={"axes": ("norm",)}, rngs=rngs)


class Block(nnx.Module):
    """Pre-norm block: attention with a bias and no scale, then a gated feed-forward network."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        width, inner = config.width, config.mlp_width
        self.attn_norm = rms_norm(width, config.epsilon, rngs=rngs)
        self.attn = Attention(
            width, heads=config.heads, head_dim=config.head_dim, biases="", scale=1.0, rngs=rngs
        )
        self.mlp_norm = rms_norm(width, config.epsilon, rngs=rngs)
        self.gate = linear(width, inner, ("embed", "mlp"), bias=False, rngs=rngs)
        self.up = linear(width, inner, ("embed", "mlp"), bias=False, rngs=rngs)
        self.down = linear(inner, width, ("mlp", "embed"), bias=False, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        *,
        mask: Bool[Array, "B 1 1 L"],
        bias: Float[Array, "1 N L L"],
    ) -> Float[Array, "B L D"]:
        x = x + self.attn(self.attn_norm(x), mask=mask, bias=bias)
        y = self.mlp_norm(x)
        return x + self.down(gelu_tanh(self.gate(y)) * self.up(y))


class T5Encoder(nnx.Module):
    """The encoder: one state for each token id."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embed = embedding(config.vocab, config.width, rngs=rngs)
        # One table serves every block; the original keeps it in its first block.
        self.position_bias = nnx.Param(
            0.02 * rngs.params.normal((config.buckets, config.heads), jnp.float32),
            axes=(None, None),
        )
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = rms_norm(config.width, config.epsilon, rngs=rngs)

    def bias(self, length: int) -> Float[Array, "1 N {length} {length}"]:
        """Return the bias that every block adds to its attention scores."""
        buckets = relative_buckets(length, self.config.buckets, self.config.max_distance)
        return jnp.transpose(self.position_bias[...][buckets], (2, 0, 1))[None]

    def __call__(self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """Return the states of all tokens; no token reads those where `mask` is False (padding)."""
        x = self.embed(ids)
        bias = self.bias(ids.shape[1])
        for block in self.blocks:
            x = block(x, mask=mask[:, None, None, :], bias=bias)
        return self.norm(x)
