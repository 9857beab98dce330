"""Get and set the weights of a network by name: `{"blocks.3.attn.q.kernel": array}`.

Every weight is an `nnx.Param` or an `nnx.BatchStat` (the running statistics of BatchNorm).
"""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import jax
from flax import nnx

from mfm_jax.layers.initial import shapes_only
from mfm_jax.storage.draws import draw, same_key

WEIGHT = (nnx.Param, nnx.BatchStat)
M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")
Weight = jax.Array | jax.ShapeDtypeStruct
MOST = 16
"""Weights of one kind that an error lists."""


class WeightError(ValueError):
    """Weights that do not fit a network; the message lists them, the first `MOST` of each kind."""


def named_weights(module: nnx.Module) -> dict[str, Weight]:
    """Return every weight of `module` by its dotted path, in a fixed order."""
    flat = nnx.to_flat_state(nnx.state(module, WEIGHT))
    return {_dotted(path): leaf.get_value() for path, leaf in flat}


def named_axes(module: nnx.Module) -> dict[str, tuple[str | None, ...]]:
    """Return the logical axes of every weight of `module`, which may hold shapes only."""
    flat = nnx.to_flat_state(nnx.state(module, WEIGHT))
    unsharded = {_dotted(path): (None,) * leaf.get_value().ndim for path, leaf in flat}
    return unsharded | {
        _dotted(path): tuple(leaf.get_metadata("axes"))
        for path, leaf in flat
        if "axes" in leaf.get_metadata()
    }


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))


def abstract(build: Callable[..., M]) -> M:
    """Return the network of `build(rngs=...)` with shapes instead of weights, without memory."""
    with shapes_only():
        return nnx.eval_shape(lambda: build(rngs=same_key()))


def initialise(build: Callable[..., M], seed: int, *, shapes_only: Sequence[str] = ()) -> M:
    """Return the network of `build(rngs=...)` with weights drawn from `seed` on the host.

    So the weights do not depend on the device, whose compiler could take minutes for so many draws.

    Args:
        shapes_only: patterns of names of weights that stay shapes, because others will take their
            place. It changes none of the other weights.
    """

    def wanted(module: M) -> list[int]:
        others = {
            id(leaf)
            for name, leaf in named_weights(module).items()
            if any(fnmatchcase(name, pattern) for pattern in shapes_only)
        }
        return [i for i, leaf in enumerate(jax.tree.leaves(module)) if id(leaf) not in others]

    return draw(build, seed, wanted=wanted)


def check_weights(
    expected: Mapping[str, jax.ShapeDtypeStruct | jax.Array],
    found: Mapping[str, tuple[int, ...]],
    *,
    where: str,
) -> None:
    """Compare the names and shapes of weights.

    Raises:
        WeightError: lists the missing, unexpected and misshaped weights of `where`.
    """
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    wrong = sorted(
        f"{name} is {tuple(found[name])}, should be {tuple(leaf.shape)}"
        for name, leaf in expected.items()
        if name in found and tuple(found[name]) != tuple(leaf.shape)
    )
    parts = [
        f"{label}: {', '.join(names[:MOST])}"
        + f" and {len(names) - MOST} more" * (len(names) > MOST)
        for label, names in (("missing", missing), ("unexpected", extra), ("misshaped", wrong))
        if names
    ]
    if parts:
        raise WeightError(f"the weights of {where} do not fit: " + "; ".join(parts))


def with_weights(module: M, weights: Mapping[str, Weight], *, where: str = "the network") -> M:
    """Return `module` (abstract or not) with `weights`, which must be all of its weights.

    Raises:
        WeightError: lists the missing, unexpected and misshaped weights.
    """
    graph, state = nnx.split(module)
    flat = nnx.to_flat_state(state)
    expected = {_dotted(path): leaf for path, leaf in flat if isinstance(leaf, WEIGHT)}
    check_weights(
        {name: leaf.get_value() for name, leaf in expected.items()},
        {name: tuple(leaf.shape) for name, leaf in weights.items()},
        where=where,
    )
    changed = [
        (path, leaf.replace(weights[_dotted(path)]) if isinstance(leaf, WEIGHT) else leaf)
        for path, leaf in flat
    ]
    return nnx.merge(graph, nnx.from_flat_state(changed))


def cast(tree: T, dtype: jax.typing.DTypeLike) -> T:
    """Return a network, or weights by name, with every floating-point weight in `dtype`.

    The network then computes in `dtype`.
    """
    return jax.tree.map(
        lambda x: x.astype(dtype) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else x,
        tree,
    )


def parameter_count(module: nnx.Module) -> int:
    """Return the number of parameters, running statistics included."""
    return sum(leaf.size for leaf in named_weights(module).values())
