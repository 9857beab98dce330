"""The arithmetic of a program as it is written, before any compiler or mesh.

Only products of matrices and convolutions are counted: they are nearly all of a network's work, and
what peak figures of devices refer to.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters.partial_eval import dce_jaxpr

from mfm_jax.cost.arithmetic import Axis, convolution, dot


def count_flops(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Floating-point operations of `function(*arguments, **options)`, on all devices together.

    The arguments may be shapes; options are passed on as they are. A loop counts as often as it
    runs, and of branches the one that does most. What is computed anew for gradients
    (rematerialisation) counts again, and what nothing reads does not count.

    Raises:
        ValueError: a loop that nobody knows the length of.
    """
    return jaxpr_flops(jax.make_jaxpr(partial(function, **options))(*arguments).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr) -> int:
    """As `count_flops`, of a function that has been traced."""
    return _operations(dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0])


def _operations(jaxpr: Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left, output = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return dot(output, [left[axis] for axis in contracted])
    if name == "conv_general_dilated":
        return _of_convolution(equation)
    inner = [_operations(jaxpr) for value in params.values() for jaxpr in _programs(value)]
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError("a while loop with products in it: nobody knows how often it runs")
    return sum(inner)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _programs(value: Any) -> list[Jaxpr]:
    """The programs that a parameter of an operation holds."""
    if isinstance(value, ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, Jaxpr):
        return [value]
    if isinstance(value, tuple | list):
        return [jaxpr for item in value for jaxpr in _programs(item)]
    return []


def _of_convolution(equation: JaxprEqn) -> int:
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
