"""Rematerialisation: activations computed again for the gradients instead of kept in memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import jax
from flax import nnx

from mfm_jax.errors import SettingError

POLICIES: dict[str, Callable[..., Any] | None] = {
    "none": None,
    # Matrix products with weights stay; convolutions and what is cheap are repeated.
    "products": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # Only the input of each block stays: a third more arithmetic.
    "blocks": jax.checkpoint_policies.nothing_saveable,
}
"""Policies by name: which activations of a block are kept."""


@dataclass
class _Policy:
    name: str
    followed: bool = False  # by at least one block


_policy: ContextVar[_Policy | None] = ContextVar("policy", default=None)


@contextmanager
def rematerialise(name: str) -> Iterator[None]:
    """Let the blocks that run inside, while a gradient is traced, follow one of `POLICIES`.

    Raises:
        SettingError: no block ran, so that the policy would do nothing.
    """
    policy = _Policy(name)
    token = _policy.set(policy)
    try:
        yield
    finally:
        _policy.reset(token)
    if name != "none" and not policy.followed:
        raise SettingError(
            f"compute.remat={name}: this network has no blocks to compute again: leave it at none"
        )


def run(block: nnx.Module, *inputs: Any, **static: Any) -> Any:
    """Return `block(*inputs, **static)`; networks call their blocks like this.

    The block follows the policy of `rematerialise`. It may update its running statistics.
    """
    policy = _policy.get()
    if policy is None or policy.name == "none":
        return block(*inputs, **static)
    policy.followed = True

    def call(block: Any, *inputs: Any) -> Any:
        return block(*inputs, **static)

    return nnx.remat(call, policy=POLICIES[policy.name])(block, *inputs)
