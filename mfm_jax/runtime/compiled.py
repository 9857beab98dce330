"""Programs that were compiled before they are called."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax


@dataclass(frozen=True)
class Programs:
    """Calls jitted functions, through their compiled programs where these are known."""

    known: Mapping[str, Callable[..., Any]] = field(default_factory=dict)  # by their names

    def __call__(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Call a jitted function; its static arguments are `options`."""
        if not self.known:
            return function(*arguments, **options)
        program = self.known.get(program_name(function, jax.tree.leaves(arguments), options))
        return function(*arguments, **options) if program is None else program(*arguments)


PROGRAMS = Programs()
"""No program is known before it is called."""


def program_name(function: Any, leaves: Sequence[Any], options: Mapping[str, Any]) -> str:
    """Return a name that tells a program from all others of the same code and bundle.

    Args:
        leaves: of the arguments; only their shapes and types count.
        options: static arguments, whose `repr` says all of them.
    """
    shapes = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves]
    told = repr((function.__module__, function.__qualname__, sorted(options.items()), shapes))
    return f"{function.__name__}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
