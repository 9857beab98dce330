"""GPT-2 over embeddings instead of words, with a KV cache.

Source: Radford et al. 2019, in the layout of Hugging Face `GPT2Model`. There is no word table and
no output head: AudioLDM2 feeds vectors and takes the hidden state after the final LayerNorm.
"""

from dataclasses import dataclass

from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import KV, MLP, Attention, KVCache, add, embedding, layer_norm
from mfm_jax.layers.backend import gradient_once
from mfm_jax.layers.mlp import gelu_tanh
from mfm_jax.layers.remat import run
from mfm_jax.typing import Array, Bool, Float


@dataclass(frozen=True)
class GPT2Config:
    """Sizes of a GPT-2."""

    width: int  # of the residual stream
    depth: int  # blocks
    heads: int
    positions: int = 1024  # longest sequence, prefix included
    epsilon: float = 1e-5  # of every LayerNorm

    @classmethod
    def small(cls) -> "GPT2Config":
        """`gpt2`, 124 M parameters with its word table, which is not used here."""
        return cls(width=768, depth=12, heads=12)

    @classmethod
    def tiny(cls) -> "GPT2Config":
        """The trunk of the miniature, 0.6 M parameters."""
        return cls(width=128, depth=3, heads=4, positions=160)


class Block(nnx.Module):
    """Pre-norm transformer block with a tanh GELU."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs) -> None:
        width = config.width
        self.attn_norm = layer_norm(width, epsilon=config.epsilon, rngs=rngs)
        self.attn = Attention(width, heads=config.heads, rngs=rngs)
        self.mlp_norm = layer_norm(width, epsilon=config.epsilon, rngs=rngs)
        self.mlp = MLP(width, 4 * width, activation=gelu_tanh, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B P D"],
        mask: Bool[Array, "B 1 1 P"] | None,
        *,
        last: int | None = None,
    ) -> tuple[Float[Array, "B L D"], KV]:
        """Return the output of all or the `last` positions, and the keys and values of all."""
        y, kv = self.attn.prefill(x, norm=self.attn_norm, mask=mask, last=last)
        x = add(x if last is None else x[:, -last:], y)
        return add(x, self.mlp(x, norm=self.mlp_norm)), kv

    def extend(
        self,
        x: Float[Array, "B L D"],
        prefix: KV,
        cache: KVCache,
        mask: Bool[Array, "B 1 1 P"] | None,
    ) -> tuple[Float[Array, "B L D"], KVCache]:
        """Return the output of `L` new positions, which read the prefix and the cached ones."""
        y, cache = self.attn.extend(self.attn_norm(x), prefix, cache, mask=mask)
        x = add(x, y)
        return add(x, self.mlp(self.mlp_norm(x))), cache


class GPT2(nnx.Module):
    """Causal transformer from vectors to vectors."""

    def __init__(self, config: GPT2Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.wpe = embedding(config.positions, config.width, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.depth)])
        self.norm = layer_norm(config.width, epsilon=config.epsilon, rngs=rngs)

    def _positions(self, start, length: int) -> Float[Array, "1 L D"]:
        return self.wpe(start + jnp.arange(length))[None]

    def __call__(
        self,
        embeds: Float[Array, "B P D"],
        mask: Bool[Array, "B P"] | None = None,
        *,
        last: int | None = None,
    ) -> Float[Array, "B L D"]:
        """Return hidden states after the final LayerNorm, of all or the `last` positions.

        `mask` is False at padding. Padding still takes up positions, as in the original. Where
        only the last positions are read, the last block computes no others.

        Raises:
            ValueError: the sequence is longer than the table of positions.
        """
        return self.prefill(embeds, mask, last=last)[0]

    def prefill(
        self,
        embeds: Float[Array, "B P D"],
        mask: Bool[Array, "B P"] | None = None,
        *,
        last: int | None = None,
    ) -> tuple[Float[Array, "B L D"], tuple[KV, ...]]:
        """Return the hidden states as the call does, and what `extend` needs to go on from here.

        Those are the keys and values of all positions, of each block.
        """
        length = embeds.shape[1]
        self._check(length)
        seen = _visible(mask)
        x = embeds.astype(self.wpe.embedding.dtype) + self._positions(0, length)
        kvs = []
        for i, block in enumerate(self.blocks, 1):
            x, kv = run(block, x, seen, last=last if i == len(self.blocks) else None)
            x = gradient_once(x)
            kvs.append(kv)
        return self.norm(x), tuple(kvs)

    def empty_cache(self, batch: int, length: int) -> tuple[KVCache, ...]:
        """Return a cache for each block, with room for `length` positions after a prefix."""
        return tuple(block.attn.empty_cache(batch, length) for block in self.blocks)

    def extend(
        self,
        embeds: Float[Array, "B L D"],
        prefix: tuple[KV, ...],
        caches: tuple[KVCache, ...],
        mask: Bool[Array, "B P"] | None = None,
    ) -> tuple[Float[Array, "B L D"], tuple[KVCache, ...]]:
        """Return hidden states of `L` further positions; `mask` is the prefix's.

        Raises:
            ValueError: prefix and caches are longer than the table of positions.
        """
        before = prefix[0].k.shape[1]
        self._check(before + caches[0].k.shape[1])
        x = embeds.astype(self.wpe.embedding.dtype)
        x = x + self._positions(before + caches[0].filled, embeds.shape[1])
        filled, seen = [], _visible(mask)
        for block, kv, cache in zip(self.blocks, prefix, caches, strict=True):
            x, cache = block.extend(x, kv, cache, seen)
            filled.append(cache)
        return self.norm(x), tuple(filled)

    def _check(self, length: int) -> None:
        if length > self.config.positions:
            raise ValueError(
                f"a sequence of {length} tokens does not fit this GPT-2, which has "
                f"{self.config.positions} positions: give it fewer tokens or a larger table"
            )


def _visible(mask: Bool[Array, "B P"] | None) -> Bool[Array, "B 1 1 P"] | None:
    return None if mask is None else mask[:, None, None, :]
