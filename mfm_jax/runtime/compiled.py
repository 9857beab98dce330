"""Programs that were compiled before they are called."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Programs:
    """Calls jitted functions, through their compiled programs where these are known."""

    known: Mapping[Key, Callable[..., Any]] = field(default_factory=dict)

    def __call__(self, function: Any, *arguments: Any, **options: Any) -> Any:
        """Call a jitted function; its static arguments are `options`."""
        if not self.known:
            return function(*arguments, **options)
        program = self.known.get(key_of(function, jax.tree.leaves(arguments), options))
        return function(*arguments, **options) if program is None else program(*arguments)


PROGRAMS = Programs()
"""No program is known before it is called."""


def key_of(function: Any, leaves: Sequence[Any], options: Mapping[str, Any]) -> Key:
    """Return what tells a program from all others of the same code and configuration.

    Args:
        leaves: of the arguments; only their shapes and types count.
    """
    shapes = tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    return function.__module__, function.__qualname__, tuple(sorted(options.items())), shapes
