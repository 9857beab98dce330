"""Loudness as broadcasters measure it, in LUFS (ITU-R BS.1770), by FFmpeg's `ebur128` filter."""

from fractions import Fraction

import av
import numpy as np
from av.error import BlockingIOError as NothingYet
from av.error import EOFError as Finished

from mfm_jax.typing import Float

SILENT = -70.0
"""LUFS: quieter sound is not measured, and neither are less than 0.4 s of sound."""

PEAK = 10 ** (-1 / 20)
"""The highest sample of a sound whose level is changed: -1 dBFS."""


def loudness(wave: Float[np.ndarray, " A"], rate: int) -> float:
    """Return the integrated loudness of a mono sound in LUFS, at least `SILENT`."""
    graph = av.filter.Graph()
    source = graph.add_abuffer(
        format="flt", sample_rate=rate, layout="mono", time_base=Fraction(1, rate)
    )
    meter = graph.add("ebur128", "metadata=1")
    sink = graph.add("abuffersink")
    source.link_to(meter)
    meter.link_to(sink)
    graph.configure()
    found = SILENT
    for at in [*range(0, len(wave), rate), None]:
        graph.push(None if at is None else _frame(wave[at : at + rate], at, rate))
        while True:
            try:
                measured = graph.pull()
            except (NothingYet, Finished):
                break
            found = float(measured.metadata.get("lavfi.r128.I", found))
    return max(found, SILENT)


def _frame(samples: Float[np.ndarray, " samples"], at: int, rate: int) -> av.AudioFrame:
    packed = np.ascontiguousarray(samples[None], np.float32)
    frame = av.AudioFrame.from_ndarray(packed, "flt", "mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
    return frame


def at_loudness(
    wave: Float[np.ndarray, " A"], rate: int, target: float | int
) -> Float[np.ndarray, " A"]:
    """Return a sound at `target` LUFS, or as near as its peak allows (-1 dBFS); silence stays."""
    measured = loudness(wave, rate)
    if measured <= SILENT:
        return wave
    gain = 10 ** ((target - measured) / 20)
    highest = float(np.abs(wave).max())
    return (wave * min(gain, PEAK / highest)).astype(np.float32)
