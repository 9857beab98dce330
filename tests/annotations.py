"""The suite checks annotations at run time; this does what jaxtyping's decorator does, much faster.

jaxtyping binds the arguments of every call, for its messages, checks them twice, and makes two
functions of every one. That took a twelfth of the suite's time.
"""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, get_args

import jaxtyping
from jaxtyping._storage import pop_shape_memo, push_shape_memo

_jaxtyped = jaxtyping.jaxtyped
GOES_ON = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def check_faster() -> None:
    """Take the decorator of this file for every function that is defined from now on."""
    jaxtyping.jaxtyped = jaxtyped


def jaxtyped(*, typechecker: Callable[[Callable], Callable]) -> Callable[[Any], Any]:
    """Return a decorator that checks arguments and results, and that sizes of one name are equal.

    jaxtyping's own decorates classes, functions that go on after they have returned, those where a
    size is that of an argument, and those with a quoted annotation, which may name what only a type
    checker imports.
    """

    def decorate(function: Any) -> Any:
        if not inspect.isfunction(function) or function.__code__.co_flags & GOES_ON:
            return _jaxtyped(typechecker=typechecker)(function)
        if any(isinstance(hint, str) for hint in function.__annotations__.values()):
            return _jaxtyped(typechecker=typechecker)(function)
        shapes = [s for hint in function.__annotations__.values() for s in _shapes(hint)]
        if any("{" in shape for shape in shapes):
            return _jaxtyped(typechecker=typechecker)(function)
        checked = typechecker(function)
        return _with_sizes_of_its_own(checked) if shapes else checked

    return decorate


def _with_sizes_of_its_own(checked: Callable) -> Callable:
    @wraps(checked)
    def call(*args: Any, **kwargs: Any) -> Any:
        push_shape_memo({})
        try:
            return checked(*args, **kwargs)
        finally:
            pop_shape_memo()

    return call


def _shapes(hint: Any) -> Iterator[str]:
    """Yield the shapes in a hint, such as "B T D" in `Float[Array, "B T D"] | None`."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        yield hint.dim_str
    else:
        for part in hint if isinstance(hint, list) else get_args(hint):
            yield from _shapes(part)
