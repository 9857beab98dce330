"""Loudness in LUFS: reference signals of EBU Tech 3341, and what normalising does."""

import numpy as np
import pytest

from mfm_jax.media.loudness import PEAK, SILENT, at_loudness, loudness


def tone(seconds: float, decibels: float, rate: int) -> np.ndarray:
    wave = np.sin(2 * np.pi * 1000 * np.arange(round(seconds * rate)) / rate)
    return (10 ** (decibels / 20) * wave).astype(np.float32)


@pytest.mark.parametrize("rate", [16_000, 44_100, 48_000])
def test_a_tone_has_the_loudness_of_the_standard(rate):
    """1 kHz at -20 dBFS (peak) in one channel is -23.0 LUFS; the standard allows 0.1."""
    assert loudness(tone(3, -20, rate), rate) == pytest.approx(-23.0, abs=0.1)


def test_pauses_do_not_count():
    """Tech 3341, case 3: the quiet parts before and after lie under the gate."""
    wave = np.concatenate([tone(3, -36, 48_000), tone(30, -23, 48_000), tone(3, -36, 48_000)])
    assert loudness(wave, 48_000) == pytest.approx(-26.0, abs=0.1)


def test_a_sound_is_brought_to_a_loudness_unless_it_would_clip():
    quiet = tone(2, -40, 16_000)
    assert loudness(at_loudness(quiet, 16_000, -23), 16_000) == pytest.approx(-23, abs=0.1)
    clicks = np.zeros(32_000, np.float32)
    clicks[::4000] = 0.5
    assert np.abs(at_loudness(clicks, 16_000, 0)).max() == pytest.approx(PEAK)
    nothing = np.zeros(16_000, np.float32)
    np.testing.assert_array_equal(at_loudness(nothing, 16_000, -23), nothing)
    assert loudness(nothing[:100], 16_000) == SILENT
