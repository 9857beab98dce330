"""Initial weights, which need not be drawn where only their shapes are wanted."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from flax import nnx
from jax import numpy as jnp

from mfm_jax.typing import Array

Initializer = Callable[..., Array]

_shapes_only: ContextVar[bool] = ContextVar("shapes_only", default=False)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Let the networks that are built inside have zeros for weights.

    Tracing the draws takes most of the time of building a network, also where the values are never
    computed.
    """
    token = _shapes_only.set(True)
    try:
        yield
    finally:
        _shapes_only.reset(token)


def drawn(initializer: Initializer) -> Initializer:
    """Return an initializer that draws as the given one, or makes zeros inside `shapes_only`."""

    def initial(key: Any, shape: Any, dtype: Any = jnp.float32, *rest: Any) -> Array:
        if _shapes_only.get():
            return jnp.zeros(shape, dtype)
        return initializer(key, shape, dtype, *rest)

    return initial


lecun_normal = drawn(nnx.initializers.lecun_normal())
"""Flax's initializer of dense maps and convolutions."""
