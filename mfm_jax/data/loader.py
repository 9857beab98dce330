"""Batches of a data source, in a seeded order that a checkpoint can go on with."""

from collections.abc import Callable
from typing import Any

import grain
import jax
import numpy as np

Element = dict[str, Any]
Transform = Callable[[Element, np.random.Generator], Element]

THREADS = 4
"""That read and transform ahead; more only help where reading is slow."""


class _Random(grain.transforms.RandomMap):
    """A function of an element and a generator as a step of Grain."""

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
) -> grain.DatasetIterator:
    """Batches of `source`, stacked; every process gets its own share of the elements.

    In training they never end: each epoch has an order of its own, drawn from `seed`. Otherwise
    they are one pass in the order of `source`, and the last batch may be shorter.
    `transform` is given each element with a generator that depends on `seed` and on how many
    elements came before, so a resumed run repeats nothing. The iterator's state goes into a
    checkpoint (`grain.checkpoint.CheckpointSave`); where the number of processes has changed,
    start a new one at batch `first` instead.

    Raises:
        ValueError: this process's share of `source` does not fill one batch of training.
    """
    dataset = grain.MapDataset.source(source).seed(seed)
    if train:
        dataset = dataset.shuffle()
    dataset = dataset[jax.process_index() :: jax.process_count()]
    if train and len(dataset) < batch:
        raise ValueError(f"{len(dataset)} clips do not fill a batch of {batch}: use more clips")
    if train:
        dataset = dataset.repeat(None)
    if transform is not None:
        dataset = dataset.random_map(_Random(transform))
    dataset = dataset.batch(batch, drop_remainder=train)
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
    iterator = iter(dataset.to_iter_dataset(options))
    if first:
        grain.experimental.set_next_index(iterator, first)
    return iterator
