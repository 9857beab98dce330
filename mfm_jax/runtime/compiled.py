"""Programs that were compiled before they are called."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
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
        if program is not None:
            # Arrays on other devices than the program was compiled for are refused.
            with suppress(TypeError, ValueError):
                return program(*arguments)
        return function(*arguments, **options)


NO_PROGRAMS = Programs()
"""No program is known before it is called."""


def in_background(read: Callable[[], Programs]) -> Programs:
    """Return programs that a thread reads; who calls one waits until all are there."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="programs")
    reading = pool.submit(read)
    pool.shutdown(wait=False)
    return Programs(_Later(reading))


class _Later(Mapping[str, Callable[..., Any]]):
    """The compiled programs of some that are still being read."""

    def __init__(self, reading: Future[Programs]) -> None:
        self.reading = reading

    def __getitem__(self, name: str) -> Callable[..., Any]:
        return self.reading.result().known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.reading.result().known)

    def __len__(self) -> int:
        return len(self.reading.result().known)


def program_name(function: Any, leaves: Sequence[Any], options: Mapping[str, Any]) -> str:
    """Return a name that tells a program from all others of the same code and bundle.

    Args:
        leaves: of the arguments; only their shapes and types count.
        options: static arguments, whose `repr` says all of them.
    """
    shapes = [(tuple(leaf.shape), str(leaf.dtype)) for leaf in leaves]
    told = repr((function.__module__, function.__qualname__, sorted(options.items()), shapes))
    return f"{function.__name__}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
