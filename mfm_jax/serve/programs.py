"""Compiled programs that are kept: those of the usual settings from the start, others once wanted.

Another number of steps or another guidance is another program. It is compiled in a thread, so that
the others' sounds go on being made, and dropped when others are used more.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
from jax import numpy as jnp

from mfm_jax.bundle import Bundle
from mfm_jax.inference.exported import Exports
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.inference.programs import Program, generation
from mfm_jax.inference.prompts import LENGTH
from mfm_jax.runtime.compiled import Programs, program_name
from mfm_jax.runtime.sharding import Layout
from mfm_jax.serve.offer import Key

MOST = 8
"""Programs of settings other than the bundle's that are kept, for each size of a batch."""


class _Kind(NamedTuple):
    """The choices that a program depends on."""

    sampling: Sampling
    reads_text: bool


class KeptPrograms:
    """The programs of generation for batches of some sizes. Several threads use it."""

    def __init__(
        self,
        bundle: Bundle,
        layout: Layout,
        sizes: Sequence[int],
        precision: str,
        say: Callable[[str], object],
    ) -> None:
        """Begin without programs, or with those beside the bundle.

        Args:
            sizes: windows of a batch, from small to large.
            say: is told why programs beside the bundle are not used.
        """
        self.bundle, self.layout, self.sizes = bundle, layout, tuple(sizes)
        self.dtype = jnp.dtype(precision)
        own = bundle.settings
        self.usual = Sampling(own.sampler, own.steps, float(own.guidance))
        found = Exports(bundle, layout, self.sizes[-1], precision, self.usual).read(say)
        self._known: dict[str, Any] = dict(found.known)
        self.programs = Programs(self._known)
        self._names: OrderedDict[_Kind, dict[int, str]] = OrderedDict()  # by size
        self._asked: dict[tuple[_Kind, int], Future[None]] = {}
        self._lock = threading.Lock()
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="compile")

    def compile_usual(self) -> None:
        """Compile everything that the bundle's own settings need, without text."""
        for size in self.sizes:
            self._compile(_Kind(self.usual, False), size)

    def ask(self, key: Key, windows: int) -> Future[None]:
        """Let what a job of so many windows needs be compiled; several may ask for the same."""
        kind, size = _Kind(key.sampling, key.reads_text), self._fitting(windows, self.sizes)
        with self._lock:
            if size in self._names.get(kind, ()):
                done: Future[None] = Future()
                done.set_result(None)
                return done
            asked = self._asked.get((kind, size))
            if asked is None:
                asked = self._compiler.submit(self._compile_asked, kind, size)
                self._asked[kind, size] = asked
            return asked

    def most(self, key: Key) -> int:
        """Return the windows of a key that can be computed at once; 0 if it is not compiled."""
        with self._lock:
            return max(self._names.get(_Kind(key.sampling, key.reads_text), (0,)))

    def size(self, key: Key, windows: int) -> int:
        """Return the size of the batch in which to compute so many windows."""
        with self._lock:
            kind = _Kind(key.sampling, key.reads_text)
            if kind in self._names:
                self._names.move_to_end(kind)
            return self._fitting(windows, sorted(self._names.get(kind, self.sizes)))

    def close(self) -> None:
        """Compile nothing more."""
        self._compiler.shutdown(wait=False, cancel_futures=True)

    @staticmethod
    def _fitting(windows: int, sizes: Sequence[int]) -> int:
        return next((size for size in sizes if size >= windows), sizes[-1])

    def _compile_asked(self, kind: _Kind, size: int) -> None:
        try:
            self._compile(kind, size)
        finally:
            with self._lock:
                del self._asked[kind, size]

    def _compile(self, kind: _Kind, size: int) -> None:
        how: dict[str, Any] = {"batch": size, "dtype": self.dtype, "sampling": kind.sampling}
        tokens = LENGTH if kind.reads_text else None
        programs = generation(self.bundle, self.layout, **how, tokens=tokens)
        for program in programs:
            if _name(program) not in self._known:
                self._known[_name(program)] = program.traced(self.layout).lower().compile()
        with self._lock:
            # The last one is the only one that depends on the settings.
            self._names.setdefault(kind, {})[size] = _name(programs[-1])
            self._names.move_to_end(kind)
            self._drop_the_least_used()

    def _drop_the_least_used(self) -> None:
        others = [kind for kind in self._names if kind.sampling != self.usual]
        for kind in others[: max(0, len(others) - MOST)]:
            for name in self._names.pop(kind).values():
                self._known.pop(name, None)


def _name(program: Program) -> str:
    return program_name(program.function, jax.tree.leaves(program.arguments), program.options)
