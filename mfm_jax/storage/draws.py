"""Draw initial weights with a program for each distribution and size, not for each shape.

JAX's random numbers depend on the key and on the place of a number, not on the shape. So a weight
is drawn as one long row, rounded up to one of a few sizes, of which it takes the beginning: the
numbers are the same, and a network of a hundred shapes needs a dozen programs. One program for all
its weights would take longer to compile. Weights of one number, such as zeros, need none. Where the
numbers depend on the shape, because JAX was told so, each shape has a program of its own.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import lax
from jax import numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Primitive, Var

from mfm_jax.runtime.seeds import random_key

ROUND = 1 << 18
"""Numbers that a larger row is a multiple of. Smaller ones are powers of four."""
ELEMENTWISE = frozenset(
    (
        "abs", "add", "bitcast_convert_type", "clamp", "convert_element_type", "cos", "div", "erf",
        "erf_inv", "exp", "log", "log1p", "max", "min", "mul", "neg", "nextafter", "or", "pow",
        "select_n", "shift_right_logical", "sign", "sin", "sqrt", "stop_gradient", "sub",
    )
)  # fmt: skip
"""Operations of a draw that make each number of a weight from that number alone."""


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
    alike: dict[_Program, dict[int, Sequence[Any]]] = {}
    leaves, structure = jax.tree.flatten(shapes)
    for i in wanted(shapes):
        one = _Draw.of(traced.jaxpr.outvars[i], made_by)
        if (constant := one.constant()) is not None:
            with jax.default_device(host):
                leaves[i] = jax.device_put(constant)
            continue
        program, values = one.program()
        alike.setdefault(program, {})[i] = [keys[v] if isinstance(v, Var) else v for v in values]

    def drawn(program: "_Program") -> dict[int, jax.Array]:
        with jax.default_device(host):
            run = _compiled(program, host is not None)
            return {
                i: _weight(run(*values), leaves[i].shape) for i, values in alike[program].items()
            }

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(drawn, alike):
            for i, leaf in found.items():
                leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves)


def _weight(drawn: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return what was drawn, which may be a row that begins with the weight."""
    if drawn.shape == shape:
        return drawn
    # A copy, which lets go of the rest of the row.
    return jax.device_put(np.asarray(drawn)[: math.prod(shape)].reshape(shape).copy())


def _rounded(count: int) -> int:
    """Return the size of the row that a weight of `count` numbers is the beginning of."""
    if count > ROUND:
        return -(-count // ROUND) * ROUND
    return 1 << 2 * math.ceil(math.log2(max(count, 1)) / 2)


class _Step(NamedTuple):
    """An operation of a program, on values that have numbers."""

    primitive: Primitive
    params: tuple[tuple[str, Any], ...]
    inputs: tuple[Any, ...]  # a value's number, or a `_Known`
    several: bool  # it returns a list


class _Known(NamedTuple):
    """A value that is part of a program."""

    type: Any
    data: bytes

    @classmethod
    def of(cls, literal: Literal) -> "_Known":
        kind = _type(literal)
        return cls(kind, np.asarray(literal.val, kind.dtype).tobytes())

    @property
    def value(self) -> Any:
        return np.frombuffer(self.data, self.type.dtype).reshape(self.type.shape)


class _Program(NamedTuple):
    """Operations that make weights from their keys, equal for all that need one compilation."""

    steps: tuple[_Step, ...]
    output: Any  # as the inputs of a step
    size: int | None  # of the row; None for a weight that keeps its shape

    def run(self, *values: jax.Array) -> jax.Array:
        """Make one weight."""
        known = list(values)

        def value(place: Any) -> Any:
            return place.value if isinstance(place, _Known) else known[place]

        for step in self.steps:
            made = step.primitive.bind(*map(value, step.inputs), **dict(step.params))
            known += made if step.several else [made]
        return jnp.asarray(value(self.output))


@functools.lru_cache(maxsize=128)
def _compiled(program: _Program, fast: bool) -> Callable[..., jax.Array]:
    # A program runs a few times only, so its optimisation would take most of the time.
    return jax.jit(
        program.run, compiler_options={"xla_backend_optimization_level": 0} if fast else None
    )


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

    def constant(self) -> np.ndarray | None:
        """Return the leaf if it is one number everywhere."""
        if [equation.primitive for equation in self.equations] != [lax.broadcast_in_dim_p]:
            return None
        number, made = self.equations[0].invars[0], _type(self.output)
        return np.full(made.shape, number.val, made.dtype) if isinstance(number, Literal) else None

    def program(self) -> tuple[_Program, Sequence[Any]]:
        """Return the program that makes the leaf, and its inputs: variables and numbers."""
        shape = _type(self.output).shape
        if shape:
            with suppress(_NotARow):  # then it keeps its shape
                return self._written(_Row(shape, _rounded(math.prod(shape))))
        return self._written(None)

    def _written(self, row: "_Row | None") -> tuple[_Program, Sequence[Any]]:
        values: list[Any] = list(self.inputs)
        scales: dict[int, int] = {}  # inputs in place of literals, by the literal's identity
        for literal in (v for e in self.equations for v in e.invars if isinstance(v, Literal)):
            # Deviations, which differ between shapes. Bounds are integers and stay in the program,
            # where the compiler computes with them in its own way.
            kind = _type(literal)
            if row is not None and kind.shape == () and kind.dtype == np.float32:
                scales[id(literal)] = len(values)
                values.append(np.float32(literal.val))
        steps: list[_Step] = []
        numbers = itertools.count(len(values))

        def write(equations: Sequence[JaxprEqn], places: dict[Var, Any]) -> None:
            def place(var: Var | Literal) -> Any:
                if isinstance(var, Literal):
                    return scales[id(var)] if id(var) in scales else _Known.of(var)
                return places[var]

            for equation in equations:
                inputs = tuple(map(place, equation.invars))
                inner = equation.params.get("jaxpr") if row is not None else None
                if inner is not None and not inner.consts:
                    within = dict(zip(inner.jaxpr.invars, inputs, strict=True))
                    write(inner.jaxpr.eqns, within)
                    made = [within[var] for var in inner.jaxpr.outvars]
                else:
                    params = equation.params if row is None else row.params(equation)
                    several = equation.primitive.multiple_results
                    steps.append(_Step(equation.primitive, tuple(params.items()), inputs, several))
                    made = [next(numbers) for _ in equation.outvars]
                places.update(zip(equation.outvars, made, strict=True))

        places: dict[Var, Any] = {var: i for i, var in enumerate(self.inputs)}
        write(self.equations, places)
        output = self.output
        end = _Known.of(output) if isinstance(output, Literal) else places[output]
        return _Program(tuple(steps), end, None if row is None else row.size), values


def _type(var: Var | Literal) -> Any:
    """Return what has the shape and the type of a value."""
    return var.aval


class _NotARow(Exception):
    """The numbers of a weight depend on more than their place in it."""


class _Row(NamedTuple):
    """A weight as a row of at least as many numbers."""

    shape: tuple[int, ...]
    size: int

    def params(self, equation: JaxprEqn) -> dict[str, Any]:
        """Return the settings of an operation that makes the row in place of the weight.

        Raises:
            _NotARow: there is no such operation.
        """
        for var in (*equation.invars, *equation.outvars):
            self._of(_type(var).shape)
        name, params = equation.primitive.name, equation.params
        if name == "random_bits" and _depends_on_places(_type(equation.invars[0]).dtype):
            return {**params, "shape": self._of(params["shape"])}
        if name == "broadcast_in_dim" and _type(equation.invars[0]).shape == ():
            return {**params, "shape": self._of(params["shape"])}
        if name in ELEMENTWISE:
            return params
        raise _NotARow

    def _of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if shape == self.shape:
            return (self.size,)
        if all(length == 1 for length in shape):
            return shape[:1]
        raise _NotARow


def _depends_on_places(kind: Any) -> bool:
    """Return whether a random number depends on its place alone, with a key of this type."""
    flag = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    return flag and str(kind) == "key<fry>"


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
