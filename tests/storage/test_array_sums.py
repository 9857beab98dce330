"""Checksums count every bit and its place, and are the same wherever they are computed."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.storage import array_sums
from mfm_jax.storage.array_sums import sum_on_devices, sum_on_host, sums

KINDS = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint32, jnp.int8, bool)
SHAPES = ((), (0, 3), (5,), (3, 4, 5))


def drawn(kind, shape) -> np.ndarray:
    """Return an array of random bits."""
    rng, kind = np.random.default_rng(0), np.dtype(kind)
    if kind.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    return np.frombuffer(rng.bytes(kind.itemsize * int(np.prod(shape))), kind).reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_host_and_devices_agree(kind, monkeypatch):
    monkeypatch.setattr(array_sums, "PIECE", 7)
    for shape in SHAPES:
        array = drawn(kind, shape)
        expected = int(sum_on_devices(array))
        assert sum_on_host(array) == expected
        assert sums({"a": jax.device_put(array)}) == [expected]


@pytest.mark.parametrize("kind", KINDS)
def test_any_element_counts(kind):
    array = np.zeros((3, 4, 5), jnp.dtype(kind))
    before, found = sum_on_host(array), set()
    for i in range(array.size):
        other = array.copy()
        other.reshape(-1)[i] = 1
        found.add(sum_on_host(other))
    assert before not in found
    assert len(found) == array.size, "the place counts as well"


def test_a_flipped_bit_counts():
    array = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    for bit in range(32):
        other = array.copy()
        other.view(np.uint32)[17, 2] ^= np.uint32(1 << bit)
        assert sum_on_host(other) != sum_on_host(array)
