"""LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank changes of the matrices of a network."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import jax
from flax import nnx
from jax import numpy as jnp

from mfm_jax.errors import SettingError
from mfm_jax.storage.weights import named_axes, named_weights, with_weights
from mfm_jax.typing import Array, Float

M = TypeVar("M", bound=nnx.Module)


class Factors(nnx.Module):
    """A low-rank change of one matrix, the product of two factors; zero at the start."""

    def __init__(
        self,
        shape: tuple[int, ...],
        axes: tuple[str | None, ...],
        rank: int,
        *,
        rngs: nnx.Rngs,
    ) -> None:
        a = rngs.params.normal((shape[0], rank), jnp.float32) * shape[0] ** -0.5
        self.a = nnx.Param(a, axes=(axes[0], None))
        self.b = nnx.Param(jnp.zeros((rank, shape[1])), axes=(None, axes[1]))

    def __call__(self) -> Float[Array, "I O"]:
        return self.a[...] @ self.b[...]


class LoRA(nnx.Module):
    """LoRA factors for the matrices of `network` whose names match one of `patterns`.

    Args:
        network: may hold shapes instead of weights; it is not kept.
        scale: of the change, called alpha over the rank in the paper.

    Raises:
        SettingError: a pattern matches no matrix.
    """

    def __init__(
        self,
        network: nnx.Module,
        patterns: Sequence[str],
        rank: int,
        *,
        scale: float = 1.0,
        rngs: nnx.Rngs,
    ) -> None:
        weights, axes = named_weights(network), named_axes(network)
        matrices = [name for name, weight in weights.items() if weight.ndim == 2]
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in matrices):
                raise SettingError(f"LoRA: no matrix is called {pattern!r}: correct the pattern")
        self.scale = scale
        self.names = tuple(
            name for name in matrices if any(fnmatchcase(name, pattern) for pattern in patterns)
        )
        self.factors = nnx.List(
            Factors(weights[name].shape, axes[name], rank, rngs=rngs) for name in self.names
        )

    def __call__(self, network: M) -> M:
        """Return `network` with the changes added to its matrices, in their precision."""
        weights: dict[str, jax.Array] = dict(named_weights(network))  # type: ignore[arg-type]
        for name, factors in zip(self.names, self.factors, strict=True):
            weights[name] = weights[name] + (self.scale * factors()).astype(weights[name].dtype)
        return with_weights(network, weights)
