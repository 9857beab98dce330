"""Checksums of arrays on devices, which are the same on every mesh."""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.runtime.sharding import fetch
from mfm_jax.typing import Array, Shaped

PIECE = 1 << 22
"""Elements that the host sums at once."""


def sums(tree: Any) -> list[int]:
    """Return a checksum of each array of `tree`.

    It is the same on every mesh, because integers may be added in any order.
    """
    # One after the other: several processes may each begin with another one, and wait for ever.
    return [_sum(array) for array in jax.tree.leaves(tree)]


def _sum(array: Array) -> int:
    if array.is_fully_addressable and {d.platform for d in array.devices()} == {"cpu"}:
        return sum_on_host(np.asarray(array))
    return int(fetch(sum_on_devices(array)))


def sum_on_host(array: np.ndarray) -> int:
    """Return the checksum of an array in the host's memory. It compiles no program."""
    flat, total = np.ascontiguousarray(array).reshape(-1), 0
    flat = flat.view(f"u{flat.itemsize}")
    for start in range(0, flat.size, PIECE):
        bits = flat[start : start + PIECE].astype(np.uint32)
        position = np.arange(start + 1, start + 1 + bits.size).astype(np.uint32)
        total += int(_mixed(bits + _mixed(position)).sum(dtype=np.uint32))
    return total % 2**32


@jax.jit  # one array: few shapes are many times faster to compile than one program for all
def sum_on_devices(array: Array) -> Shaped[Array, ""]:
    """Return the sum modulo 2**32 of a hash of each element's bits and position."""
    if array.dtype == bool:
        array = array.astype(jnp.uint8)
    kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, kind).astype(jnp.uint32)
    position, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        position = position + index * jnp.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return _mixed(bits + _mixed(position + jnp.uint32(1))).sum(dtype=jnp.uint32)


def _mixed(x: Shaped[Array | np.ndarray, "*S"]) -> Shaped[Array | np.ndarray, "*S"]:
    """Hash integers: every bit of `x` changes the result (Appleby, MurmurHash3's finaliser)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
