"""Attention as one pure function, and the module that owns its four projections.

There are no modes. Causality is an argument, T5's relative positions are a bias, positions that
rotate or shift queries and keys are a function argument, cross-attention is a second input, and a
cache is a value.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from einops import rearrange
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers import tpu_attention
from mfm_jax.layers.backend import (
    apart,
    flash_attention,
    has_flash_attention,
    platform,
    prenorm,
    project,
)
from mfm_jax.layers.linear import linear
from mfm_jax.layers.norm import LayerNorm
from mfm_jax.runtime.sharding import constrain
from mfm_jax.typing import Array, Bool, Float, Int


def attend(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    *,
    mask: Bool[Array, "#B #N #L S"] | None = None,
    bias: Float[Array, "#B #N #L S"] | None = None,
    causal: bool = False,
    scale: float | None = None,
) -> Float[Array, "B L N K"]:
    """Return `softmax(scale q kT + bias) v`; no other function picks an implementation.

    `mask` is True where a key may be seen; `causal` hides from a query the keys behind its own
    place; `bias` is added to the scaled scores. `scale` defaults to `K ** -0.5`. Scores and softmax
    are float32, the products are in the precision of the inputs.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def written_out(q: Array, k: Array, v: Array) -> Array:
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        seen = jnp.tril(jnp.ones((1, 1, q.shape[2], k.shape[2]), bool)) if causal else None
        seen = mask if seen is None else seen if mask is None else seen & mask
        return jnp.swapaxes(_combine([_scores(q, k, scale, seen, bias)], [v]), 1, 2)

    if mask is None and bias is None and has_flash_attention(q, k):
        return flash_attention(q, k, v, otherwise=written_out, causal=causal, scale=scale)
    plain = mask is None and bias is None and not causal
    if plain and platform() == "tpu" and tpu_attention.fits(q, k):
        return tpu_attention.attention(q, k, v, written_out, scale)
    return written_out(q, k, v)


def attend_to_all(
    q: Float[Array, "B L N K"],
    sources: Sequence[tuple["KV", Bool[Array, "#B 1 #L S"] | None]],
    *,
    scale: float | None = None,
) -> Float[Array, "B L N K"]:
    """Attend over several sequences of keys and values as if they were one, without copying any.

    Each comes with its mask, which is True where a key may be seen.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    q, scores = jnp.swapaxes(q, 1, 2), []
    for kv, mask in sources:
        scores.append(_scores(q, jnp.swapaxes(kv.k, 1, 2), scale, mask, None))
        q = apart(q)
    return jnp.swapaxes(_combine(scores, [jnp.swapaxes(kv.v, 1, 2) for kv, _ in sources]), 1, 2)


# Written out because `jax.nn.dot_product_attention` takes several times as long on a CPU.
def _scores(
    q: Float[Array, "B N L K"],
    k: Float[Array, "B N S K"],
    scale: float,
    mask: Bool[Array, "#B #N #L S"] | None,
    bias: Float[Array, "#B #N #L S"] | None,
) -> Float[Array, "B N L S"]:
    scores = _products(q, k) * scale
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(scores.dtype).min)


@jax.custom_vjp
def _products(q: Float[Array, "B N L K"], k: Float[Array, "B N S K"]) -> Float[Array, "B N L S"]:
    """Return `q kT` in float32.

    Its gradients multiply in the precision of the inputs, as in flash attention.
    """
    return jnp.einsum("bnlk,bnsk->bnls", q, k, preferred_element_type=jnp.float32)


def _products_backward(
    inputs: tuple[Array, Array], dy: Float[Array, "B N L S"]
) -> tuple[Array, Array]:
    q, k = inputs
    dy = dy.astype(q.dtype)
    return jnp.einsum("bnls,bnsk->bnlk", dy, k), jnp.einsum("bnls,bnlk->bnsk", dy, q)


_products.defvjp(lambda q, k: (_products(q, k), (q, k)), _products_backward)


def _combine(
    scores: Sequence[Float[Array, "B N L _S"]], values: Sequence[Float[Array, "B N _S K"]]
) -> Float[Array, "B N L K"]:
    """Return the values weighted by one softmax over all scores."""
    dtype = values[0].dtype
    top = functools.reduce(jnp.maximum, (s.max(axis=-1, keepdims=True) for s in scores))
    weights = [jnp.exp(s - lax.stop_gradient(top)) for s in scores]
    # Dividing after the products with the values touches K numbers a query instead of S.
    total = functools.reduce(jnp.add, (w.sum(axis=-1, keepdims=True) for w in weights))
    parts = (
        jnp.einsum("bnls,bnsk->bnlk", w.astype(dtype), v)
        for w, v in zip(weights, values, strict=True)
    )
    return functools.reduce(lambda y, part: apart(y) + part, parts) / total.astype(dtype)


class KV(NamedTuple):
    """Keys and values of `S` positions."""

    k: Float[Array, "B S N K"]
    v: Float[Array, "B S N K"]


class KVCache(NamedTuple):
    """Keys and values of positions after a prefix; the first `filled` of `S` are valid."""

    k: Float[Array, "B S N K"]
    v: Float[Array, "B S N K"]
    filled: Int[Array, ""]


class Attention(nnx.Module):
    """Multi-head attention with separate `q k v o` projections.

    Args:
        width: width of the input and the output.
        heads: number of heads.
        head_dim: width of one head; `width // heads` where not given.
        context_width: width of the source of keys and values; `width` where not given.
        biases: which of the projections `"qkvo"` have a bias.
        scale: factor on the scores; `head_dim ** -0.5` where not given.

    Raises:
        ValueError: `heads` does not divide `width` and no `head_dim` is given.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        head_dim: int | None = None,
        context_width: int | None = None,
        biases: str = "qkvo",
        scale: float | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if head_dim is None and width % heads:
            raise ValueError(f"{heads} heads do not divide the width {width}")
        self.heads, self.scale = heads, scale
        inner = heads * (head_dim or width // heads)
        source = context_width or width
        self.q = linear(width, inner, ("embed", "heads"), bias="q" in biases, rngs=rngs)
        self.k = linear(source, inner, ("embed", "heads"), bias="k" in biases, rngs=rngs)
        self.v = linear(source, inner, ("embed", "heads"), bias="v" in biases, rngs=rngs)
        self.o = linear(inner, width, ("heads", "embed"), bias="o" in biases, rngs=rngs)

    def _split(self, x: Float[Array, "B L NK"]) -> Float[Array, "B L N K"]:
        return rearrange(x, "b l (n k) -> b l n k", n=self.heads)

    def _project(
        self, x: Float[Array, "B L D"], source: Float[Array, "B S C"], norm: LayerNorm | None
    ) -> tuple[Float[Array, "B L N K"], Float[Array, "B S N K"], Float[Array, "B S N K"]]:
        """Return queries of `x`, keys and values of `source`; `norm` is that of `prenorm`."""
        q, source = project(self.q, x, norm), apart(source)
        k, source = project(self.k, source, norm), apart(source)
        return self._split(q), self._split(k), self._split(project(self.v, source, norm))

    def _merge(self, x: Float[Array, "B L N K"]) -> Float[Array, "B L D"]:
        return constrain(self.o(rearrange(x, "b l n k -> b l (n k)")), "batch")

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S C"] | None = None,
        *,
        mask: Bool[Array, "#B #N #L S"] | None = None,
        bias: Float[Array, "#B #N #L S"] | None = None,
        causal: bool = False,
        position: Callable | None = None,
    ) -> Float[Array, "B L D"]:
        """Attend to `context`, or to `x` itself; `position(q, k)` may rotate or shift both."""
        q, k, v = self._project(x, x if context is None else context, None)
        if position is not None:
            q, k = position(q, k)
        return self._merge(attend(q, k, v, mask=mask, bias=bias, causal=causal, scale=self.scale))

    def prefill(
        self,
        x: Float[Array, "B P D"],
        *,
        norm: LayerNorm | None = None,
        mask: Bool[Array, "B 1 1 P"] | None = None,
        last: int | None = None,
    ) -> tuple[Float[Array, "B L D"], KV]:
        """Causal self-attention of `norm(x)`, and the keys and values that `extend` reads.

        `mask` is False at positions that nobody may read (padding). With `last`, the output is that
        of the last positions alone.
        """
        x, rest = prenorm(norm, x)
        q, k, v = self._project(x if last is None else x[:, -last:], x, rest)
        if last is not None:
            places = jnp.arange(x.shape[1])
            before = (places[None] <= places[-last:, None])[None, None]
            mask = before if mask is None else mask & before
        y = attend(q, k, v, mask=mask, causal=last is None, scale=self.scale)
        return self._merge(y), KV(k, v)

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """Return a cache for `length` positions, in the precision of the weights."""
        kernel = self.k.kernel
        shape = (batch, length, self.heads, kernel.shape[1] // self.heads)
        zeros = jnp.zeros(shape, kernel.dtype)
        return KVCache(zeros, zeros, jnp.zeros((), jnp.int32))

    def extend(
        self,
        x: Float[Array, "B L D"],
        prefix: KV,
        cache: KVCache,
        *,
        mask: Bool[Array, "B 1 1 P"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache]:
        """Attend from `L` new positions to a prefix, to the cached positions and to themselves.

        `mask` is False at positions of the prefix that nobody may read (padding).
        """
        start, length = cache.filled, x.shape[1]
        k = lax.dynamic_update_slice(cache.k, self._split(self.k(x)), (0, start, 0, 0))
        v = lax.dynamic_update_slice(cache.v, self._split(self.v(x)), (0, start, 0, 0))
        keys = jnp.arange(k.shape[1])
        seen = keys[None, :] <= (start + jnp.arange(length))[:, None]
        read = (prefix, mask), (KV(k, v), seen[None, None])
        y = attend_to_all(self._split(self.q(x)), read, scale=self.scale)
        return self._merge(y), KVCache(k, v, start + length)
