"""DeSync of every clip on every side, where the bundle has a Synchformer and the clip a video."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any

import jax
import numpy as np

from mfm_jax.errors import MediaError
from mfm_jax.evaluation.clips import Pairing, Sound
from mfm_jax.evaluation.measure import Measured, Wave
from mfm_jax.evaluation.report import REFERENCE
from mfm_jax.inference.desync import desync_inputs, desync_logits
from mfm_jax.inference.stream import Device, batches, in_full, read_ahead
from mfm_jax.media.sounds import is_sound_file
from mfm_jax.metrics.desync import desync_per_window
from mfm_jax.models.synchformer import Synchformer
from mfm_jax.runtime.sharding import Layout

SECONDS = 8.0
"""How much of a clip is compared, as in av-benchmark; shorter clips have no score."""

Key = tuple[str, str]
"""A side and the name of a clip."""


def add_desync(
    network: Synchformer,
    pairing: Pairing,
    clips: Sequence[Measured],
    *,
    layout: Layout,
    batch: int,
    seconds: float = SECONDS,
) -> None:
    """Add `desync` to the scores of clips: the mean of both windows, nan where there is none."""
    config = network.config
    sides = {REFERENCE: pairing.reference, **pairing.systems}
    videos = {clip.name: video_of(sides, clip.name) for clip in clips}
    keys = [(side, clip.name) for clip in clips for side in sides if videos[clip.name] is not None]

    def read(key: Key) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        video = videos[key[1]]
        if video is None:
            return
        try:
            with sides[key[0]][key[1]].here() as sound, video.here() as picture:
                wave = Wave.read(sound).at_16k
                inputs = desync_inputs(config, picture.path, wave, seconds, picture.start)
            yield inputs
        except MediaError:
            return  # too short, as in the original, which drops such clips

    def start(group: list[tuple[Key, tuple[np.ndarray, np.ndarray]]]) -> Any:
        pieces = [piece for _, piece in in_full(group, batch)]
        arrays = (np.stack([piece[i] for piece in pieces]) for i in (0, 1))
        return desync_logits(network, *jax.device_put(tuple(arrays), layout.batch(batch)))

    found: dict[Key, float] = {}
    device = Device[Any, Any](start, jax.device_get)
    with closing(read_ahead(keys, read, ahead=batch)) as items:
        for group, logits in device.results(batches(items, batch)):
            if isinstance(logits, Exception):
                raise logits
            windows = desync_per_window(logits[: len(group)], config.sync.seconds())
            for (key, _), score in zip(group, windows.mean(axis=1), strict=True):
                found[key] = float(score)
    for clip in clips:
        for side in sides:
            clip.scores[side]["desync"] = found.get((side, clip.name), float("nan"))


def video_of(sides: Mapping[str, Mapping[str, Sound]], name: str) -> Sound | None:
    """Return the video of a clip: that of the reference, or else of the first system that has one.

    None if all sides have sound alone.
    """
    sounds = (its[name] for its in sides.values())
    return next((sound for sound in sounds if not is_sound_file(sound.path)), None)
