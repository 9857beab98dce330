"""What is done to a sound once it is made: its sample rate, the clip's own sound, its loudness."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr

from mfm_jax.media.audio import RATE
from mfm_jax.media.loudness import SILENT, at_loudness, loudness
from mfm_jax.media.soundtrack import fitted, read_audio
from mfm_jax.typing import Float

RATES = (16_000, 24_000, 44_100, 48_000)
"""Samples per second of the files that can be written."""

LOUDEST, QUIETEST = 0.0, -60.0
"""LUFS between which a target makes sense."""

NEAR = 0.5
"""LU by which a sound may miss its target without a word."""


@dataclass(frozen=True)
class Finishing:
    """Gives every sound of a run its rate, the own sound of its video, and its loudness."""

    rate: int = RATE  # samples per second of the files
    lufs: float | None = None  # integrated loudness; None leaves the level as it is
    mix: float | None = None  # dB by which the clip's own sound is changed and added; None is not

    def __call__(
        self, wave: Float[np.ndarray, " A"], source: Path, start: float
    ) -> tuple[Float[np.ndarray, " samples"], list[str]]:
        """Return a 16 kHz sound at the rate of the file, and what is other than one might expect.

        Args:
            source: the video, whose own sound may be kept.
            start: where the sound begins in it, in seconds.

        Raises:
            MediaError: the video's own sound cannot be read.
        """
        notes = []
        samples = round(len(wave) * self.rate / RATE)
        if self.rate != RATE:
            wave = fitted(soxr.resample(wave, RATE, self.rate), samples)
        if self.mix is not None:
            own = read_audio(source, self.rate, start, samples / self.rate)
            if own is None:
                notes.append("the video has no sound of its own to mix in")
            else:
                wave = _limited(wave + fitted(own, samples) * np.float32(10 ** (self.mix / 20)))
        if self.lufs is not None:
            wave = at_loudness(wave, self.rate, self.lufs)
            if (found := loudness(wave, self.rate)) <= SILENT:
                notes.append("it is too short or too quiet for its loudness to be measured")
            elif found < self.lufs - NEAR:
                notes.append(f"its peaks allow {found:.1f} LUFS and not {self.lufs:g}")
        return wave, notes


def _limited(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, " A"]:
    """Make a sound quieter if it would be clipped."""
    return wave / max(1.0, float(np.abs(wave).max(initial=0.0)))
