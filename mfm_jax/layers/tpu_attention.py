"""Attention on TPUs in one kernel (Pallas), for sequences whose keys and values fit on the chip.

XLA writes the scores to memory and reads them again for each part of the softmax. For the 257
tokens of a frame in EVA-CLIP-g that is half of all that moves. Here they never leave the chip: a
program of the grid holds all keys and values of an example and some of its queries.

Heads stay side by side in the last axis, as projections make and read them: with an axis of their
own, a TPU would pad their 88 channels to 128 and copy everything twice. A head then begins anywhere
in the registers of 128 lanes. Its products are made with all lanes of the registers that it
touches, of which the other heads' are zero in the queries, and its own are picked from the result.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp

from mfm_jax.runtime.sharding import spec
from mfm_jax.typing import Array, Float

LANES = 128
"""Channels in a register of a TPU."""

QUERIES = 512
"""Queries at most that a program of the grid reads."""

MEMORY = 12 << 20
"""Bytes of a core's fast memory (16 MiB by default) that a program may fill."""


def fits(q: Float[Array, "B L N K"], k: Float[Array, "B S N K"]) -> bool:
    """Return whether the kernel takes such queries and keys, on the mesh in use."""
    _, length, heads, width = q.shape
    if width > LANES or length % (_queries(length) or 1):
        return False
    if k.shape[1] == 1:  # Mosaic does not lower products with one row: the empty text has one token
        return False
    shards = _shards(q)
    if heads % shards or (heads // shards * width) % LANES:
        return False
    channels = heads // shards * width
    # Blocks are read and written while the one before is computed; scores are float32.
    blocks = 2 * q.dtype.itemsize * channels * 2 * (_queries(length) + k.shape[1])
    return blocks + 3 * 4 * _queries(length) * k.shape[1] <= MEMORY


def _queries(length: int) -> int:
    return length if length <= QUERIES else QUERIES // 2


def _shards(q: Float[Array, "B L N K"]) -> int:
    """Return over how many devices the heads are divided."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get("tensor", 1)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def attention(
    q: Float[Array, "B L N K"],
    k: Float[Array, "B S N K"],
    v: Float[Array, "B S N K"],
    otherwise: Callable[[Array, Array, Array], Array],
    scale: float,
    interpret: bool = False,
) -> Float[Array, "B L N K"]:
    """Return `softmax(scale q kT) v`; gradients are those of `otherwise`, which computes the same.

    Args:
        interpret: compute on any device what a TPU would, for tests.
    """
    call = partial(_kernel_call, width=q.shape[3], scale=scale, interpret=interpret)
    y = _on_the_mesh(call, *(x.reshape(*x.shape[:2], -1) for x in (q, k, v)))
    return y.reshape(q.shape)


def _forward(q: Array, k: Array, v: Array, *others: Any) -> tuple[Array, tuple[Array, ...]]:
    return attention(q, k, v, *others), (q, k, v)


def _backward(
    otherwise: Callable, scale: float, interpret: bool, kept: tuple[Array, ...], dy: Array
) -> tuple[Array, ...]:
    return jax.vjp(otherwise, *kept)[1](dy)


attention.defvjp(_forward, _backward)


def _on_the_mesh(call: Callable[..., Array], *qkv: Array) -> Array:
    """Run a kernel on each device, for its examples and its heads."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return call(*qkv)
    places = [spec(("batch", None, "heads"), x.shape, mesh) for x in qkv]
    return jax.shard_map(call, in_specs=tuple(places), out_specs=places[0], check_vma=False)(*qkv)


def _kernel_call(
    q: Float[Array, "B L NK"],
    k: Float[Array, "B S NK"],
    v: Float[Array, "B S NK"],
    *,
    width: int,
    scale: float,
    interpret: bool,
) -> Float[Array, "B L NK"]:
    from jax.experimental import pallas as pl

    batch, length, channels = q.shape
    rows, seen = _queries(length), k.shape[1]
    products = 4 * batch * length * seen * channels
    moved = 2 * q.dtype.itemsize * batch * channels * (length + seen)
    exponentials = batch * channels // width * length * seen
    some = pl.BlockSpec((1, rows, channels), lambda example, part: (example, part, 0))
    every = pl.BlockSpec((1, seen, channels), lambda example, part: (example, 0, 0))
    return pl.pallas_call(
        partial(_attend, width=width, scale=scale),
        grid=(batch, length // rows),
        in_specs=[some, every, every],
        out_specs=some,
        out_shape=jax.ShapeDtypeStruct(q.shape, q.dtype),
        cost_estimate=pl.CostEstimate(
            flops=products, bytes_accessed=moved, transcendentals=exponentials
        ),
        interpret=interpret,
    )(q, k, v)


def _attend(q_ref: Any, k_ref: Any, v_ref: Any, y_ref: Any, *, width: int, scale: float) -> None:
    """Attend from some queries of an example to all its keys, head by head."""
    for first in range(0, q_ref.shape[2], width):
        begin, end = first // LANES * LANES, -(-(first + width) // LANES) * LANES
        lanes = begin + lax.broadcasted_iota(jnp.int32, (1, end - begin), 1)
        mine = (lanes >= first) & (lanes < first + width)
        q, k, v = (ref[0, :, begin:end] for ref in (q_ref, k_ref, v_ref))
        scores = scale * lax.dot_general(
            jnp.where(mine, q, jnp.zeros_like(q)),
            k,
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
        y = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        y = (y / weights.sum(axis=-1, keepdims=True)).astype(y_ref.dtype)
        # The lanes of the heads after this one are written when it is their turn.
        y_ref[0, :, begin:end] = jnp.where(mine, y, y_ref[0, :, begin:end])
