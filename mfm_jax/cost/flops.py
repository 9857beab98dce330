"""Count the floating-point operations of a program as written, before compilation and sharding.

Only matrix products and convolutions are counted: they are nearly all of a network's work, and peak
figures of devices refer to them.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from mfm_jax.cost.arithmetic import Axis, convolution, dot


def count_flops(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Count the operations of `function(*arguments, **options)`, on all devices together.

    The arguments may be shapes; the options are static. The body of a loop counts once per
    iteration, and of branches only the largest counts. Recomputation for gradients
    (rematerialisation) counts again; results that are not used do not count.

    Raises:
        ValueError: the length of a loop is not known.
    """
    return jaxpr_flops(jax.make_jaxpr(partial(function, **options))(*arguments).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """Count the operations of a traced function, as `count_flops` does."""
    return _jaxpr_flops(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _jaxpr_flops(jaxpr: Jaxpr) -> int:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, output = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return dot(output, [left[axis] for axis in contracted])
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if name == "pallas_call":
        return _kernel_flops(params)
    inner = [_jaxpr_flops(jaxpr) for value in params.values() for jaxpr in _programs(value)]
    if name == "shard_map":
        return _devices(params) * sum(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("cannot count the products in a while loop: its length is not known")
    return sum(inner)


def _kernel_flops(params: Mapping[str, Any]) -> int:
    """Return what a Pallas kernel says that it does: its body is that of one program of many.

    Raises:
        ValueError: it does not say it.
    """
    if params["cost_estimate"] is None:
        raise ValueError("a kernel without a cost estimate cannot be counted: give it one")
    return params["cost_estimate"].flops


def _devices(params: Mapping[str, Any]) -> int:
    """Return how many devices share the work of a `shard_map`, each of which does what is inside.

    Devices along axes that divide no result do the same as others.
    """
    divided = {name for place in params["out_specs"] for axis in place for name in _names(axis)}
    return math.prod(params["mesh"].shape[name] for name in divided)


def _names(axis: Any) -> tuple[str, ...]:
    return () if axis is None else (axis,) if isinstance(axis, str) else tuple(axis)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _programs(value: Any) -> list[Jaxpr]:
    """Return the programs in a parameter of an operation."""
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _programs(item)]
    return []


def _convolution_flops(equation: JaxprEqn) -> int:
    params = equation.params
    numbers = params["dimension_numbers"]
    left, kernel = map(_shape, equation.invars)
    output = _shape(equation.outvars[0])
    space = [
        Axis(
            left[numbers.lhs_spec[2 + i]],
            output[numbers.out_spec[2 + i]],
            kernel[numbers.rhs_spec[2 + i]],
            params["window_strides"][i],
            params["padding"][i][0],
            params["lhs_dilation"][i],
            params["rhs_dilation"][i],
        )
        for i in range(len(left) - 2)
    ]
    return convolution(
        output[numbers.out_spec[0]], output[numbers.out_spec[1]], kernel[numbers.rhs_spec[1]], space
    )
