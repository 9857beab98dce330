"""Work that never waits: files are decoded ahead, and batches computed while others are fetched.

Generation and extraction share this. Everything comes out in the order in which it went in, so what
is made does not depend on which thread was faster.
"""

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Condition
from typing import Any, Generic, TypeVar

from mfm_jax.runtime.throughput import Throughput

THREADS = 4
"""Threads that decode ahead of the device; PyAV, Pillow and numpy release Python's lock."""

IN_FLIGHT = 2
"""Batches on the device at a time: one is computed and the next waits for it."""

S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


@dataclass(eq=False)
class _Source(Generic[S, T]):
    """A source, and what was read of it and is not yet taken."""

    source: S
    items: deque[T] = field(default_factory=deque)
    over: bool = False
    error: BaseException | None = None


class _Reading(Generic[S, T]):
    """Reads several sources in threads; at most `most` items wait, and one more in each thread."""

    def __init__(self, read: Callable[[S], Iterable[T]], most: int) -> None:
        self.read, self.most = read, most
        self.sources: deque[_Source[S, T]] = deque()
        self.stopped = False
        self._count = 0
        self._changed = Condition()

    def fill(self, source: _Source[S, T]) -> None:
        """Read a source to its end, or until the reading is stopped."""
        try:
            for item in () if self.stopped else self.read(source.source):
                with self._changed:
                    self._changed.wait_for(lambda: self.stopped or self._has_room(source))
                    if self.stopped:
                        return
                    source.items.append(item)
                    self._count += 1
                    self._changed.notify_all()
        except BaseException as error:
            source.error = error
        finally:
            with self._changed:
                source.over = True
                self._changed.notify_all()

    def _has_room(self, source: _Source[S, T]) -> bool:
        # The source whose turn it is can always go on, or the others would wait for ever.
        return self._count < self.most or (source is self.sources[0] and not source.items)

    def first(self) -> Iterator[tuple[S, T]]:
        """Yield the items of the first source, and then forget it."""
        source = self.sources[0]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: source.items or source.over)
                if not source.items:
                    break
                item = source.items.popleft()
                self._count -= 1
                self._changed.notify_all()
            yield source.source, item
        if source.error is not None:
            raise source.error
        with self._changed:
            self.sources.popleft()
            self._changed.notify_all()

    def stop(self) -> None:
        """Let no thread wait any longer."""
        with self._changed:
            self.stopped = True
            self._changed.notify_all()


def read_ahead(
    sources: Iterable[S],
    read: Callable[[S], Iterable[T]],
    *,
    ahead: int,
    threads: int = THREADS,
) -> Generator[tuple[S, T], None, None]:
    """Yield each source with each item that `read` gives of it, in order; close it in the end.

    Threads read up to `ahead` items, of as many sources, before they are wanted. A source is read
    by one thread from its first item to its last. What `read` raises is raised here, in the place
    of its item.
    """
    reading = _Reading(read, ahead)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="read")
    try:
        for source in sources:
            begun = _Source[S, T](source)
            reading.sources.append(begun)
            pool.submit(reading.fill, begun)
            if len(reading.sources) > ahead:
                yield from reading.first()
        while reading.sources:
            yield from reading.first()
    finally:
        reading.stop()
        pool.shutdown(cancel_futures=True)


def batches(
    items: Iterable[T], size: int, key: Callable[[T], Hashable] = lambda item: None
) -> Iterator[list[T]]:
    """Yield lists of `size` items of one key each; the last ones of every key may be shorter."""
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        kind = key(item)
        groups.setdefault(kind, []).append(item)
        if len(groups[kind]) == size:
            yield groups.pop(kind)
    yield from groups.values()


def in_full(group: list[T], size: int) -> list[T]:
    """Fill a batch up with its last item: the shape is always the same, and nothing recompiles."""
    return [*group, *[group[-1]] * (size - len(group))]


@dataclass(frozen=True)
class Device(Generic[T, R]):
    """Computes batches, of which the next one is started before the last one is fetched."""

    start: Callable[[list[T]], Any]  # starts to compute a batch
    fetch: Callable[[Any], R]  # waits for what `start` returned
    throughput: Throughput = field(default_factory=Throughput)

    def results(self, groups: Iterable[list[T]]) -> Iterator[tuple[list[T], R | Exception]]:
        """Yield each group with its result, or with the exception that it raised, in order."""
        waiting: deque[tuple[list[T], Future]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="fetch") as collector:
            for group in groups:
                waiting.append((group, collector.submit(self._fetched, self._started(group))))
                while len(waiting) >= IN_FLIGHT or (waiting and waiting[0][1].done()):
                    group, result = waiting.popleft()
                    yield group, result.result()
            for group, result in waiting:
                yield group, result.result()

    def results_by_source(
        self, groups: Iterable[list[T]], source: Callable[[T], Any]
    ) -> Iterator[tuple[list[T], R | Exception]]:
        """Yield as `results`. Where a group fails, the items of each source in it are tried alone.

        So an exception comes with items of one source.
        """
        for group, result in self.results(groups):
            alone = {id(source(item)): source(item) for item in group}.values()
            if not isinstance(result, Exception) or len(alone) == 1:
                yield group, result
                continue
            for one in alone:
                items = [item for item in group if source(item) is one]
                yield items, self.result(items)

    def result(self, group: list[T]) -> R | Exception:
        """Compute one group and wait for it."""
        return self._fetched(self._started(group))

    def _started(self, group: list[T]) -> Any:
        self.throughput.begin_batch()
        try:
            return self.start(group)
        except Exception as error:
            return error

    def _fetched(self, started: Any) -> R | Exception:
        try:
            return started if isinstance(started, Exception) else self.fetch(started)
        except Exception as error:
            return error
        finally:
            self.throughput.end_batch()
