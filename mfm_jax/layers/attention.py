"""Attention as one pure function, and the module that owns its four projections.

There are no modes. Causality is an argument, T5's relative positions are a bias, rotary or clock
positions are a function argument, cross-attention is a second input, a cache is a value.
"""

import functools
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
from einops import rearrange
from flax import nnx
from jax import lax
from jax import numpy as jnp

from mfm_jax.layers.linear import linear
from mfm_jax.layers.norm import LayerNorm
from mfm_jax.layers.products import apart, project
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
    """`softmax(scale q kT + bias) v`, the only place that picks an implementation.

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

    if mask is None and bias is None and _cudnn_attends(q, k):
        flash = partial(_flash, causal=causal, scale=scale)
        return lax.platform_dependent(q, k, v, cuda=flash, default=written_out)
    return written_out(q, k, v)


def attend_to_all(
    q: Float[Array, "B L N K"],
    sources: Sequence[tuple["KV", Bool[Array, "#B 1 #L S"] | None]],
    *,
    scale: float | None = None,
) -> Float[Array, "B L N K"]:
    """As `attend`, over several sequences of keys and values as if they were one: none is copied.

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
    """In float32; their gradients multiply in the precision of the inputs, as flash attention's."""
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
    """The values, weighed by one softmax over all scores."""
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


def _cudnn_attends(q: Float[Array, "B L N K"], k: Float[Array, "B S N K"]) -> bool:
    """Whether cuDNN's flash attention, which never writes the scores down, takes these.

    Asked while a program is traced; what it is compiled for is decided later.
    """
    half, width = q.dtype in (jnp.bfloat16, jnp.float16), q.shape[-1]
    return half and width % 8 == 0 and width <= 128 and k.shape[1] >= 8 and _has_cudnn()


@cache
def _has_cudnn() -> bool:
    """Whether this process has GPUs with tensor cores for it: NVIDIA's, from Ampere on."""
    if jax.default_backend() != "gpu":
        return False
    device = jax.local_devices()[0]
    return "cuda" in device.client.platform_version and float(device.compute_capability) >= 8


def _flash(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    *,
    causal: bool,
    scale: float,
) -> Float[Array, "B L N K"]:
    """cuDNN's, for which JAX allows no gradients where a length is odd: such ones are padded."""
    queries, keys = q.shape[1], k.shape[1]
    lengths: dict[str, Any] = {}
    if queries % 2 or keys % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = {
            "query_seq_lengths": jnp.full(q.shape[:1], queries, jnp.int32),
            "key_value_seq_lengths": jnp.full(q.shape[:1], keys, jnp.int32),
        }
    y = jax.nn.dot_product_attention(
        q, k, v, scale=scale, is_causal=causal, implementation="cudnn", **lengths
    )
    return y[:, :queries]


class KV(NamedTuple):
    """Keys and values of `S` positions."""

    k: Float[Array, "B S N K"]
    v: Float[Array, "B S N K"]


class KVCache(NamedTuple):
    """Keys and values of positions behind a prefix; the first `filled` of `S` are valid."""

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

    def _project(
        self, x: Float[Array, "B L D"], source: Float[Array, "B S C"], norm: LayerNorm | None = None
    ) -> tuple[Float[Array, "B L N K"], Float[Array, "B S N K"], Float[Array, "B S N K"]]:
        """Queries of `x`, keys and values of `source`."""
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
        """Reads `context` (or `x` itself); `position(q, k)` may rotate or shift both first."""
        q, k, v = self._project(x, x if context is None else context)
        if position is not None:
            q, k = position(q, k)
        return self._merge(attend(q, k, v, mask=mask, bias=bias, causal=causal, scale=self.scale))

    def begin(
        self,
        x: Float[Array, "B P D"],
        *,
        mask: Bool[Array, "B 1 1 P"] | None = None,
        last: int | None = None,
        norm: LayerNorm | None = None,
    ) -> tuple[Float[Array, "B L D"], KV]:
        """Causal attention of `x`, or its `last` positions, to `x`; not beyond `mask`.

        Also what `extend` needs of `x`. `x` and `norm` may be those of `to_project`.
        """
        q, k, v = self._project(x if last is None else x[:, -last:], x, norm)
        if last is not None:
            places = jnp.arange(x.shape[1])
            before = (places[None] <= places[-last:, None])[None, None]
            mask = before if mask is None else mask & before
        y = attend(q, k, v, mask=mask, causal=last is None, scale=self.scale)
        return self._merge(y), KV(k, v)

    def empty_cache(self, batch: int, length: int) -> KVCache:
        """Room for `length` positions, in the precision of the weights."""
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
        """Causal attention of `L` new positions over a prefix, the cached ones and themselves.

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
