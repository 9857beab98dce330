"""Activations that are computed anew for the gradients instead of kept: memory for time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import jax
from flax import nnx

POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    # The products with weights stay, what is cheap between them goes.
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Only what enters each block stays: a third more arithmetic.
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""What of a block is kept, by name."""

_policy: ContextVar[str] = ContextVar("policy", default="none")


@contextmanager
def rematerialise(policy: str) -> Iterator[None]:
    """Blocks that run inside, while a gradient is traced, follow one of `POLICIES`."""
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)


def run(block: nnx.Module, *inputs: Any, **static: Any) -> Any:
    """`block(*inputs, **static)`; networks call the blocks that they are a stack of like this."""
    policy = _policy.get()
    if policy == "none":
        return block(*inputs, **static)
    call = partial(_call, static=static)
    return jax.checkpoint(call, policy=POLICIES[policy])(block, *inputs)


def _call(block: Callable[..., Any], *inputs: Any, static: dict[str, Any]) -> Any:
    return block(*inputs, **static)
