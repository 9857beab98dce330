"""Get and set the weights of a network by name: `{"blocks.3.attn.q.kernel": array}`.

Every weight is an `nnx.Param` or an `nnx.BatchStat` (the running statistics of BatchNorm).
"""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr

from mfm_jax.runtime.seeds import random_key

WEIGHT = (nnx.Param, nnx.BatchStat)
M = TypeVar("M", bound=nnx.Module)
T = TypeVar("T")
Weight = jax.Array | jax.ShapeDtypeStruct


class WeightError(ValueError):
    """Weights that do not fit a network; the message lists every one of them."""


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
    return nnx.eval_shape(lambda: build(rngs=_rngs(0)))


def initialise(build: Callable[..., M], seed: int) -> M:
    """Return the network of `build(rngs=...)` with weights drawn from `seed` on the host.

    So the weights do not depend on the device. A GPU's compiler would take minutes for so many
    draws, and so would a CPU's for all draws of a large network in one program.
    """
    host = _host()
    with jax.default_device(host):
        key = random_key(seed)  # an argument, so that all seeds share compiled programs
    drawn, module = jax.make_jaxpr(lambda key: build(rngs=_rngs(key)), return_shape=True)(key)
    shapes, structure = jax.tree.flatten(module)
    # The program runs once, so its optimisation would take most of the time.
    fast = None if host is None else {"xla_backend_optimization_level": 0}

    def part(start: int) -> list[jax.Array]:
        wanted = [start <= i < start + _TOGETHER for i in range(len(shapes))]
        jaxpr, _ = dce_jaxpr(drawn.jaxpr, wanted, instantiate=True)
        program = jaxpr_as_fun(ClosedJaxpr(jaxpr, drawn.consts))
        with jax.default_device(host):
            return jax.jit(program, compiler_options=fast)(key)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = pool.map(part, range(0, len(shapes), _TOGETHER))
        return jax.tree.unflatten(structure, [leaf for leaves in parts for leaf in leaves])


_TOGETHER = 200
"""Arrays that one program draws."""


def _host() -> jax.Device | None:
    """Return the CPU, or None if `JAX_PLATFORMS` excludes it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _rngs(seed: int | jax.Array) -> nnx.Rngs:
    rngs = nnx.Rngs(seed)
    rngs.default = _Stream(seed, tag="default")  # type: ignore[attr-defined]
    return rngs


class _Stream(nnx.RngStream):
    """A stream of random keys that is quick to trace.

    Flax's own stream asks a traced count for its sharding, and JAX then searches the entire trace
    for the text of an error that is never shown: quadratic in the weights, minutes for a large
    UNet.
    """

    def __call__(self) -> jax.Array:
        key = jax.random.fold_in(self.key[...], self.count[...])
        self.count.set_value(self.count[...] + 1)
        return key


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
        f"{label}: {', '.join(names)}"
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
    check_weights(
        named_weights(module), {k: tuple(v.shape) for k, v in weights.items()}, where=where
    )
    graph, state = nnx.split(module)
    flat = [
        (
            path,
            leaf.replace(weights[".".join(map(str, path))]) if isinstance(leaf, WEIGHT) else leaf,
        )
        for path, leaf in nnx.to_flat_state(state)
    ]
    return nnx.merge(graph, nnx.from_flat_state(flat))


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
