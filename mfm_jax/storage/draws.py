"""Draw initial weights with one program for each shape and distribution.

A network has few of these. One program for all its weights would take longer to compile. Weights of
one number, such as zeros, need none.
"""

import os
from collections.abc import Callable, Collection, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax import numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from mfm_jax.runtime.seeds import random_key


def same_key() -> nnx.Rngs:
    """Return an `rngs` that gives one key again and again, which is enough for shapes."""
    return _rngs(_SameKey(0, tag="default"))


def draw(build: Callable[..., Any], seed: int, *, wanted: Callable[[Any], Collection[int]]) -> Any:
    """Return what `build(rngs=...)` makes, a tree of arrays.

    Args:
        wanted: returns, from the tree of shapes, the numbers of the leaves to draw, in the order
            of `jax.tree.leaves`. The others stay shapes.
    """
    host = _host()
    with jax.default_device(host):
        key = random_key(seed)
        traced, shapes = jax.make_jaxpr(
            lambda: build(rngs=_rngs(_KnownKeys(key, tag="default"))), return_shape=True
        )()
    keys = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
    made_by = {var: (i, eqn) for i, eqn in enumerate(traced.jaxpr.eqns) for var in eqn.outvars}
    groups: dict[Hashable, dict[int, _Draw]] = {}
    for i in wanted(shapes):
        one = _Draw.of(traced.jaxpr.outvars[i], made_by)
        groups.setdefault(one.kind(), {})[i] = one
    # A program runs a few times only, so its optimisation would take most of the time.
    fast = None if host is None else {"xla_backend_optimization_level": 0}

    def drawn(alike: dict[int, _Draw]) -> dict[int, jax.Array]:
        first = next(iter(alike.values()))
        with jax.default_device(host):
            if first.constant() is not None:
                return {i: jax.device_put(one.constant()) for i, one in alike.items()}
            program = jax.jit(first.run, compiler_options=fast)
            return {i: program(*(keys[var] for var in one.inputs)) for i, one in alike.items()}

    leaves, structure = jax.tree.flatten(shapes)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(drawn, groups.values()):
            for i, leaf in found.items():
                leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


@dataclass(frozen=True)
class _Draw:
    """The part of a traced program that makes one leaf from its random keys."""

    inputs: tuple[Var, ...]
    equations: tuple[JaxprEqn, ...]
    output: Var | Literal

    @classmethod
    def of(cls, output: Var | Literal, made_by: Mapping[Var, tuple[int, JaxprEqn]]) -> "_Draw":
        """Return the part that makes `output`.

        Args:
            made_by: the equation that makes a variable, and its number in the program.
        """
        inputs: dict[Var, None] = {}
        equations: dict[int, JaxprEqn] = {}
        needed = [output]
        while needed:
            var = needed.pop()
            if isinstance(var, Literal):
                continue
            if var not in made_by:
                inputs[var] = None
            elif made_by[var][0] not in equations:
                number, equation = made_by[var]
                equations[number] = equation
                needed += equation.invars
        return cls(tuple(inputs), tuple(equations[i] for i in sorted(equations)), output)

    def kind(self) -> Hashable:
        """Return what is equal for draws that differ in the values of their inputs only."""
        made = (var for equation in self.equations for var in equation.outvars)
        number = {var: i for i, var in enumerate((*self.inputs, *made))}

        def place(var: Var | Literal) -> Hashable:
            if isinstance(var, Literal):
                return var.aval, np.asarray(var.val).tobytes()
            return number[var]

        steps = ((e.primitive, *map(place, e.invars), *e.params.items()) for e in self.equations)
        return (*(var.aval for var in self.inputs), *steps, place(self.output))

    def constant(self) -> np.ndarray | None:
        """Return the leaf if it is one number everywhere."""
        if [equation.primitive for equation in self.equations] != [lax.broadcast_in_dim_p]:
            return None
        number, made = self.equations[0].invars[0], cast(Any, self.output.aval)
        return np.full(made.shape, number.val, made.dtype) if isinstance(number, Literal) else None

    def run(self, *values: jax.Array) -> jax.Array:
        """Make the leaf from the values of `inputs`."""
        known: dict[Var, Any] = dict(zip(self.inputs, values, strict=True))

        def value(var: Var | Literal) -> Any:
            return var.val if isinstance(var, Literal) else known[var]

        for equation in self.equations:
            made = equation.primitive.bind(*map(value, equation.invars), **equation.params)
            several = equation.primitive.multiple_results
            known |= zip(equation.outvars, made if several else [made], strict=True)
        return jnp.asarray(value(self.output))


def _host() -> jax.Device | None:
    """Return the CPU, or None if `JAX_PLATFORMS` excludes it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _rngs(stream: nnx.RngStream) -> nnx.Rngs:
    rngs = nnx.Rngs(0)
    rngs.default = stream  # type: ignore[attr-defined]
    return rngs


class _SameKey(nnx.RngStream):
    def __call__(self) -> jax.Array:
        return self.key.get_value()


class _KnownKeys(nnx.RngStream):
    """Flax's stream of random keys, each of which is a value while its use is traced.

    Flax's own stream also asks a traced count for its sharding, and JAX then searches the entire
    trace for the text of an error that is never shown: quadratic in the weights, minutes for a
    large UNet.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.given = 0

    def __call__(self) -> jax.Array:
        with jax.ensure_compile_time_eval():
            key = jax.random.fold_in(self.key.get_value(), self.given)
        self.given += 1
        return key
