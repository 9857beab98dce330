"""Batches of a data source, in a seeded order that a checkpoint can go on with."""

from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from mfm_jax.data.clips import DataError

Element = dict[str, Any]
Transform = Callable[[Element, np.random.Generator], Element]

THREADS = 4
"""Threads that read and transform ahead; more only help where reading is slow."""


ROOM = 4 << 30
"""Bytes of elements that a process keeps in memory: all of the miniature's."""


class CachedDataset:
    """At most `limit` elements of a dataset after `read`, each read once where memory allows.

    Once `room` bytes of them are kept the others are read anew each time.
    """

    def __init__(
        self,
        dataset: Any,
        read: Callable[[Element], Element],
        limit: int | None = None,
        *,
        room: int = ROOM,
    ) -> None:
        self._dataset, self._read, self._room = dataset, read, room
        self._kept: dict[int, Element] = {}
        self._length = len(dataset) if limit is None else min(limit, len(dataset))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Element:
        index = int(index)
        if index in self._kept:
            return self._kept[index]
        element = self._read(self._dataset[index])
        if self._room > 0:  # threads may go over it together, by one element each
            self._room -= sum(np.asarray(array).nbytes for array in element.values())
            self._kept[index] = element
        return element

    def id_of(self, index: int) -> str:
        """Return the id of the clip of one element."""
        return self._dataset.id_of(index)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._dataset!r}, {self._length})"


class _Random(grain.transforms.RandomMap):
    """A function of an element and a generator, as a Grain transformation."""

    def __init__(self, transform: Transform) -> None:
        self._transform = transform

    def random_map(self, element: Element, rng: np.random.Generator) -> Element:
        return self._transform(element, rng)


def batches(
    source: Any,
    *,
    batch: int,
    seed: int,
    train: bool,
    transform: Transform | None = None,
    first: int = 0,
    share: tuple[int, int] = (0, 1),
) -> grain.DatasetIterator:
    """Return an iterator over stacked batches of `source`.

    In training it never ends, and each epoch has an order of its own, drawn from `seed`. Otherwise
    it is one pass in the order of `source`, and the last batch may be shorter. `transform` gets
    each element with a generator that depends on `seed` and the number of elements before it. So
    batch `n` is always the same, and a run that starts at `first` continues as if it had never been
    stopped.

    Args:
        share: (i, n): return part `i` of each training batch, cut into `n` equal parts. For any
            number of processes the parts make up the same batches.

    Raises:
        DataError: `source` does not fill one batch of training.
    """
    index, parts = share
    dataset = _ordered(grain.MapDataset.source(source), batch, seed, train)
    if transform is not None:
        dataset = dataset.random_map(_Random(transform))
    dataset = dataset.batch(batch // parts, drop_remainder=train)[index::parts]
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
    iterator = iter(dataset.to_iter_dataset(options))
    if first:
        grain.experimental.set_next_index(iterator, first)
    return iterator


def clips_of(length: int, *, batch: int, seed: int, number: int) -> list[int]:
    """Return the indices, in a source of `length` elements, of training batch `number`."""
    dataset = _ordered(grain.MapDataset.range(length), batch, seed, train=True)
    return [int(dataset[i]) for i in range(number * batch, (number + 1) * batch)]


def _ordered(dataset: grain.MapDataset, batch: int, seed: int, train: bool) -> grain.MapDataset:
    dataset = dataset.seed(seed)
    if not train:
        return dataset
    if len(dataset) < batch:
        raise DataError(f"{len(dataset)} clips do not fill a batch of {batch}: use more clips")
    return dataset.shuffle().repeat(None)
