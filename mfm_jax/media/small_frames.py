"""All frames of a video in a small size, for measures of motion and for pictures of a page."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from av.video.reformatter import Interpolation

from mfm_jax.errors import MediaError
from mfm_jax.media.frames import decoded_frames
from mfm_jax.media.sandbox import sandboxed_items
from mfm_jax.media.scaling import as_rgb
from mfm_jax.media.timeline import read_timeline
from mfm_jax.typing import UInt8


@sandboxed_items
def small_frames(
    path: Path, side: int, start: float = 0.0, end: float | None = None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yield the frames shown from `start` to `end`, upright, at most `side` pixels long.

    Raises:
        MediaError: the video is damaged, or over before `start`.
    """
    line = read_timeline(path, start, np.inf if end is None else end)
    times = line.times
    first = max(0, int(np.searchsorted(times, start + 1e-6)) - 1)
    last = len(times) if end is None else int(np.searchsorted(times, end - 1e-6))
    if start >= line.seconds:
        raise MediaError(f"{path} ends at {line.seconds:.2f} s: nothing is left from {start:g} s")
    scale = min(1.0, side / max(line.width, line.height))
    width, height = (max(2, round(scale * size)) for size in (line.width, line.height))
    for number, frame in decoded_frames(path, line, first):
        if number >= last:
            return
        yield line.orientation.apply(as_rgb(frame, width, height, Interpolation.AREA))
