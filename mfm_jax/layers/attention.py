"""Attention as one pure function, and the module that owns its four projections.

There are no modes. Causality is a mask, T5's relative positions are a bias, rotary or clock
positions are a function argument, cross-attention is a second input, a cache is a value.
"""

from collections.abc import Callable
from typing import NamedTuple

from einops import rearrange
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers.linear import linear
from mfm_jax.sharding import constrain
from mfm_jax.typing import Array, Bool, Float, Int


def attend(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    *,
    mask: Bool[Array, "#B #N #L S"] | None = None,
    bias: Float[Array, "#B #N #L S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B L N K"]:
    """`softmax(scale q kT + bias) v`, the only place that picks an implementation.

    `mask` is True where a key may be seen; `bias` is added to the scaled scores. `scale` defaults
    to `K ** -0.5`. Scores and softmax are float32, the products are in the precision of the inputs.
    Written out because `jax.nn.dot_product_attention` takes several times as long on a CPU.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.einsum("bnlk,bnsk->bnls", q, k, preferred_element_type=jnp.float32)
    scores = scores * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.astype(scores.dtype)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    # Dividing after the product with the values touches K numbers a query instead of S.
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    total = weights.sum(axis=-1, keepdims=True)
    y = jnp.einsum("bnls,bnsk->bnlk", weights.astype(v.dtype), v)
    return jnp.swapaxes(y / total.astype(y.dtype), 1, 2)


def causal_mask(length: int) -> Bool[Array, "1 1 {length} {length}"]:
    """True on and below the diagonal."""
    return jnp.tril(jnp.ones((1, 1, length, length), bool))


class KVCache(NamedTuple):
    """Keys and values of the positions read so far; the first `filled` of `S` are valid."""

    k: Float[Array, "B S N K"]
    v: Float[Array, "B S N K"]
    filled: Int[Array, ""]


class Attention(nnx.Module):
    """Multi-head attention with separate `q k v o` projections.

    Args:
        d: width of the input and the output.
        heads: number of heads.
        head_dim: width of one head; `d // heads` where not given.
        d_context: width of the keys' source; `d` where not given.
        biases: which of the projections `"qkvo"` have a bias.
        scale: factor on the scores; `head_dim ** -0.5` where not given.

    Raises:
        ValueError: `heads` does not divide `d` and no `head_dim` is given.
    """

    def __init__(
        self,
        d: int,
        *,
        heads: int,
        head_dim: int | None = None,
        d_context: int | None = None,
        biases: str = "qkvo",
        scale: float | None = None,
        rngs: nnx.Rngs,
    ) -> None:
        if head_dim is None and d % heads:
            raise ValueError(f"{heads} heads do not divide the width {d}")
        self.heads, self.scale = heads, scale
        inner = heads * (head_dim or d // heads)
        source = d_context or d
        self.q = linear(d, inner, ("embed", "heads"), bias="q" in biases, rngs=rngs)
        self.k = linear(source, inner, ("embed", "heads"), bias="k" in biases, rngs=rngs)
        self.v = linear(source, inner, ("embed", "heads"), bias="v" in biases, rngs=rngs)
        self.o = linear(inner, d, ("heads", "embed"), bias="o" in biases, rngs=rngs)

    def _split(self, x: Float[Array, "B L NK"]) -> Float[Array, "B L N K"]:
        return rearrange(x, "b l (n k) -> b l n k", n=self.heads)

    def _merge(self, x: Float[Array, "B L N K"]) -> Float[Array, "B L D"]:
        return constrain(self.o(rearrange(x, "b l n k -> b l (n k)")), "batch")

    def __call__(
        self,
        x: Float[Array, "B L D"],
        context: Float[Array, "B S C"] | None = None,
        *,
        mask: Bool[Array, "#B #N #L S"] | None = None,
        bias: Float[Array, "#B #N #L S"] | None = None,
        position: Callable | None = None,
    ) -> Float[Array, "B L D"]:
        """Reads `context` (or `x` itself); `position(q, k)` may rotate or shift both first."""
        source = x if context is None else context
        q, k, v = (self._split(y) for y in (self.q(x), self.k(source), self.v(source)))
        if position is not None:
            q, k = position(q, k)
        return self._merge(attend(q, k, v, mask=mask, bias=bias, scale=self.scale))

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """Room for `length` positions, in the precision of the weights."""
        kernel = self.k.kernel
        shape = (batch, length, self.heads, kernel.shape[1] // self.heads)
        zeros = jnp.zeros(shape, kernel.dtype)
        return KVCache(zeros, zeros, jnp.zeros((), jnp.int32))

    def extend(
        self,
        x: Float[Array, "B L D"],
        cache: KVCache,
        *,
        mask: Bool[Array, "#B S"] | None = None,
    ) -> tuple[Float[Array, "B L D"], KVCache]:
        """Causal attention of `L` new positions over the cached ones and themselves.

        `mask` is False at cached positions that nobody may read (padding).
        """
        start, length = cache.filled, x.shape[1]
        k = lax.dynamic_update_slice(cache.k, self._split(self.k(x)), (0, start, 0, 0))
        v = lax.dynamic_update_slice(cache.v, self._split(self.v(x)), (0, start, 0, 0))
        keys = jnp.arange(k.shape[1])
        seen = keys[None, :] <= (start + jnp.arange(length))[:, None]
        seen = seen[None, None]
        if mask is not None:
            seen = seen & mask[:, None, None, :]
        y = self._merge(attend(self._split(self.q(x)), k, v, mask=seen, scale=self.scale))
        return y, KVCache(k, v, start + length)
