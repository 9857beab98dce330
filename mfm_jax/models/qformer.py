"""The querying transformer of BLIP-2 and InstructBLIP: a few learned queries read many tokens.

A post-norm BERT whose first positions are learned queries. Only these see the context, through
cross-attention; text tokens, where there are any, share the self-attention with the queries and
have feed-forward networks of their own. BLIP-2 (arXiv 2301.12597), InstructBLIP (arXiv
2305.06500); TimeChat `timechat/models/Qformer.py`.
"""

from dataclasses import dataclass

from flax import nnx
from jax import numpy as jnp

from mfm_jax.layers import MLP, Attention, embedding, layer_norm, table
from mfm_jax.layers.remat import run
from mfm_jax.typing import Array, Bool, Float, Int


@dataclass(frozen=True)
class QFormerConfig:
    """Sizes of a Q-Former."""

    queries: int  # learned query tokens
    width: int
    context_width: int  # of the tokens that the queries read
    depth: int  # blocks
    heads: int
    mlp_width: int  # of the feed-forward networks
    cross_every: int  # cross-attention in blocks 0, cross_every, 2 * cross_every, ...
    words: int | None = None  # rows of the word table; None: no text input, and no weights for it
    positions: int = 512  # most text tokens, BERT's number
    epsilon: float = 1e-12  # of every LayerNorm, BERT's number

    @classmethod
    def image(cls) -> "QFormerConfig":
        """InstructBLIP's over EVA-CLIP g; the words are BERT's and one that is never used."""
        return cls(
            queries=32,
            width=768,
            context_width=1408,
            depth=12,
            heads=12,
            mlp_width=3072,
            cross_every=2,
            words=30523,
        )

    @classmethod
    def video(cls) -> "QFormerConfig":
        """TimeChat's over the tokens of the image Q-Former."""
        return cls(
            queries=32,
            width=768,
            context_width=768,
            depth=2,
            heads=12,
            mlp_width=3072,
            cross_every=1,
        )


class PostNormAttention(nnx.Module):
    """Residual attention over the tokens themselves, or over a context of width `context_width`."""

    def __init__(
        self, config: QFormerConfig, *, context_width: int | None = None, rngs: nnx.Rngs
    ) -> None:
        self.attn = Attention(
            config.width, heads=config.heads, context_width=context_width, rngs=rngs
        )
        self.norm = layer_norm(config.width, epsilon=config.epsilon, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S C"] | None = None,
        *,
        mask: Bool[Array, "B 1 1 L"] | None = None,
    ) -> Float[Array, "B L D"]:
        return self.norm(x + self.attn(x, context, mask=mask))


class PostNormMLP(nnx.Module):
    """Residual feed-forward network."""

    def __init__(self, config: QFormerConfig, *, rngs: nnx.Rngs) -> None:
        self.mlp = MLP(config.width, config.mlp_width, rngs=rngs)
        self.norm = layer_norm(config.width, epsilon=config.epsilon, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.norm(x + self.mlp(x))


class Block(nnx.Module):
    """Queries and text see each other; then only the queries see the context."""

    def __init__(self, config: QFormerConfig, *, cross: bool, rngs: nnx.Rngs) -> None:
        width, text = config.context_width, config.words is not None
        self.queries = config.queries
        self.joint = PostNormAttention(config, rngs=rngs)
        self.cross = PostNormAttention(config, context_width=width, rngs=rngs) if cross else None
        self.query_mlp = PostNormMLP(config, rngs=rngs)
        self.text_mlp = PostNormMLP(config, rngs=rngs) if text else None

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S C"],
        mask: Bool[Array, "B 1 1 L"] | None = None,
    ) -> Float[Array, "B L D"]:
        x = self.joint(x, mask=mask)
        queries, text = x[:, : self.queries], x[:, self.queries :]
        if self.cross is not None:
            queries = self.cross(queries, context)
        queries = self.query_mlp(queries)
        if self.text_mlp is None or not text.shape[1]:
            return queries
        return jnp.concatenate([queries, self.text_mlp(text)], axis=1)


class TextEmbedding(nnx.Module):
    """Words and their positions, counted from the first word; the queries have neither."""

    def __init__(self, words: int, config: QFormerConfig, *, rngs: nnx.Rngs) -> None:
        self.words = embedding(words, config.width, rngs=rngs)
        self.positions = table(config.positions, config.width, rngs=rngs)

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        length, most = ids.shape[1], self.positions.shape[0]
        if length > most:
            raise ValueError(f"{length} text tokens, at most {most} fit")
        return self.words(ids) + self.positions[:length][None]


class QFormer(nnx.Module):
    """Queries that read a context, together with text if the network takes any."""

    def __init__(self, config: QFormerConfig, *, rngs: nnx.Rngs) -> None:
        self.queries = table(config.queries, config.width, rngs=rngs)
        words, every = config.words, config.cross_every
        self.text = None if words is None else TextEmbedding(words, config, rngs=rngs)
        self.norm = layer_norm(config.width, epsilon=config.epsilon, rngs=rngs)
        self.blocks = nnx.List(
            [Block(config, cross=i % every == 0, rngs=rngs) for i in range(config.depth)]
        )

    def embed(self, batch: int, ids: Int[Array, "B L"] | None) -> Float[Array, "B Q D"]:
        """Return the queries, then the words, under one norm.

        Raises:
            ValueError: there are words and the network takes none, or they are too many.
        """
        queries = self.queries[...]
        x = jnp.broadcast_to(queries[None], (batch, *queries.shape))
        if ids is not None:
            if self.text is None:
                raise ValueError("this Q-Former reads no text: its config has no words")
            x = jnp.concatenate([x, self.text(ids)], axis=1)
        return self.norm(x)

    def visible(self, batch: int, mask: Bool[Array, "B L"] | None) -> Bool[Array, "B 1 1 Q"] | None:
        """Return the mask of the joint attention's keys: all queries, and the words of `mask`."""
        if mask is None:
            return None
        queries = jnp.ones((batch, self.queries.shape[0]), bool)
        return jnp.concatenate([queries, mask], axis=1)[:, None, None, :]

    def __call__(
        self,
        context: Float[Array, "B S C"],
        ids: Int[Array, "B L"] | None = None,
        mask: Bool[Array, "B L"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Return the query tokens and then the text tokens, `Q` in all.

        `mask` is False at padding. No token sees padding, but it comes back like the others.
        """
        x, visible = self.embed(context.shape[0], ids), self.visible(context.shape[0], mask)
        context = context.astype(x.dtype)
        for block in self.blocks:
            x = run(block, x, context, visible)
        return x
