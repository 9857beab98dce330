"""Generation with few networks on the device at a time: encoders, then the mapper, then diffusion.

Many windows pass one stage before the weights of the next are read. Between stages the tokens of a
window and its LOA wait on the host. They are small, and its frames are dropped once it is encoded.
"""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, NamedTuple

import jax
import numpy as np

from mfm_jax.inference.candidates import Choice
from mfm_jax.inference.memory import STAGES
from mfm_jax.inference.pipeline import Made, VideoToAudio
from mfm_jax.inference.stream import Device, in_full
from mfm_jax.inference.work import Item, Job, Result, the_only_one
from mfm_jax.media.windows import Window
from mfm_jax.runtime.throughput import Throughput

ROUND = 256
"""Windows that pass a stage before the next begins. Reading weights takes a few seconds for each
stage, and the tokens and sounds of so many windows some hundred MB."""


class Passing(NamedTuple):
    """A window between two stages, and what the last one made of it."""

    job: Job
    window: Window
    made: Any = None  # rows of host arrays


@dataclass(frozen=True)
class StagedNetworks:
    """A `Maker` with the networks of one stage on the device at a time."""

    open: Callable[[Sequence[str]], VideoToAudio]  # loads the networks of these names
    # Starts to make the sounds of windows from their LOA, with the networks of the last stage.
    sound: Callable[[VideoToAudio, Sequence[Item], Any], Made]
    choose: Callable[[Sequence[Made]], Choice] = the_only_one

    def results(
        self, groups: Iterable[list[Item]], batch: int, throughput: Throughput
    ) -> Iterator[Result]:
        """Yield what is made of each group, after up to `ROUND` windows have passed all stages."""
        rest = iter(groups)
        for first in rest:
            a_round = chain([first], islice(rest, max(1, ROUND // batch) - 1))
            yield from self._round(a_round, batch, throughput)

    def _round(
        self, groups: Iterable[list[Item]], batch: int, throughput: Throughput
    ) -> Iterator[Result]:
        """Let groups pass all stages; yield those that fail in one at once."""
        passing: Iterable[list[Passing]] = ([Passing(*item) for item in group] for group in groups)
        for name, start in (("encoders", _encode), ("mapper", _predict)):
            passed = []
            for group, result in self._stage(name, start, passing, batch, throughput):
                if isinstance(result, Exception):
                    yield [(one.job, one.window) for one in group], result
                else:
                    passed.append(_rows(group, result))
            if not passed:
                return
            passing = passed

        def sound(model: VideoToAudio, group: list[Passing]) -> Made:
            return self.sound(model, [(one.job, one.window) for one in group], _stacked(group))

        for group, result in self._stage("diffusion", sound, passing, batch, throughput):
            yield [(one.job, one.window) for one in group], result

    def _stage(
        self,
        name: str,
        start: Callable[[VideoToAudio, list[Passing]], Any],
        groups: Iterable[list[Passing]],
        batch: int,
        throughput: Throughput,
    ) -> Iterator[tuple[list[Passing], Any]]:
        """Load the networks of a stage, yield its results, and free the memory of its weights."""
        model = self.open(STAGES[name])
        device = Device[Passing, Any](
            lambda group: start(model, in_full(group, batch)), jax.device_get, throughput
        )
        try:
            yield from device.results_by_source(groups, lambda one: one.job)
        finally:
            _free(model)


def _encode(model: VideoToAudio, group: list[Passing]) -> Any:
    return model.encode([one.window for one in group])


def _predict(model: VideoToAudio, group: list[Passing]) -> Any:
    return model.predict(_stacked(group))


def _rows(group: list[Passing], result: Any) -> list[Passing]:
    """Return each window with its row of a stage's result, and without its frames."""

    def row(number: int) -> Any:
        # A copy, because a view would keep the rows of windows that are done.
        return jax.tree.map(lambda rows: np.array(rows[number]), result)

    return [Passing(one.job, one.window.without_frames(), row(i)) for i, one in enumerate(group)]


def _stacked(group: list[Passing]) -> Any:
    return jax.tree.map(lambda *rows: np.stack(rows), *(one.made for one in group))


def _free(model: VideoToAudio) -> None:
    """Give back the memory of a model's weights, whoever still refers to them."""
    for leaf in jax.tree.leaves(model.networks):
        if isinstance(leaf, jax.Array):
            leaf.delete()
    gc.collect()
