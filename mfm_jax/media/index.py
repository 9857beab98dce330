"""Tell whether the index of a file can be trusted to find a later start in it.

An index holds raw timestamps. Where their clock leaps ahead or goes back, a time of the continuous
recording is found only by reading the file from its beginning.
"""

import av
import numpy as np

from mfm_jax.media.clock import AHEAD

INDEXED = ("mov", "matroska")
"""Beginnings of FFmpeg's names of the containers that have an index."""

KEYFRAMES_APART = 15.0
"""Seconds between two entries where only keyframes are listed; encoders rarely leave more."""


def is_continuous(
    container: av.container.InputContainer,
    video: av.VideoStream,
    audio: av.AudioStream | None,
    begin: float,
    end: float,
) -> bool:
    """Return whether the index reaches `begin` (s), and no clock in it breaks up to `end` (s)."""
    if not container.format.name.startswith("mov"):  # Matroska lists keyframes of the video only
        return _has_no_break(video, begin, end, KEYFRAMES_APART) and _is_in_file_order(video)
    with_sound = audio is None or _has_no_break(audio, -np.inf, end, AHEAD)
    return with_sound and _has_no_break(video, begin, end, AHEAD)


def _has_no_break(
    stream: av.VideoStream | av.AudioStream, begin: float, end: float, apart: float
) -> bool:
    """Return whether entries at most `apart` seconds from each other lead to `begin` and `end`."""
    base = float(stream.time_base or 1)
    seconds = np.array([entry.timestamp for entry in stream.index_entries]) * base
    if not len(seconds):
        return begin == -np.inf
    until = seconds[: np.searchsorted(seconds, end) + 1]
    return bool((np.diff(until) <= apart).all() and begin <= seconds[-1] + apart)


def _is_in_file_order(stream: av.VideoStream) -> bool:
    """Return whether later entries lie further on in the file.

    FFmpeg sorts entries by time, so a clock that goes back shows only here.
    """
    places = [entry.pos for entry in stream.index_entries]
    return bool((np.diff(places) >= 0).all())
