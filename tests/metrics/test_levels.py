"""Envelopes, clipping, and spectral distances of sounds whose scores are known."""

import numpy as np
import pytest

from mfm_jax.metrics import levels, similarity

RATE = 16_000


def burst(at: float, seconds: float = 2.0) -> np.ndarray:
    wave = np.zeros(round(seconds * RATE))
    start = round(at * RATE)
    wave[start : start + 800] = np.sin(np.arange(800)) * np.linspace(1, 0, 800)
    return wave


@pytest.mark.parametrize("late", [0.0, 0.1, -0.2, 0.45])
def test_the_lag_of_a_shifted_sound_is_its_shift(late):
    envelopes = [levels.envelope(burst(at), RATE) for at in (1.0, 1.0 + late)]
    correlation, lag = levels.envelope_agreement(*envelopes)
    assert lag == pytest.approx(late)
    assert correlation == pytest.approx(1.0) if not late else correlation < 0.1


def test_the_envelope_does_not_depend_on_the_level_and_silence_has_none():
    one = levels.envelope(burst(1.0), RATE)
    assert levels.envelope_agreement(one, 0.01 * one)[0] == pytest.approx(1.0)
    assert np.isnan(levels.envelope_agreement(one, np.zeros_like(one))).all()
    assert np.isnan(levels.envelope_agreement(one[:0], one)).all()


@pytest.mark.parametrize(
    ("peak", "run", "clipped"), [(1, 3, True), (1, 2, False), (0.99, 9, False)]
)
def test_three_samples_at_full_scale_are_clipped(peak, run, clipped):
    wave = np.zeros(100)
    wave[50 : 50 + run] = -peak
    assert levels.is_clipped(wave) == clipped
    assert not levels.is_clipped(wave[:0])


def test_the_multi_resolution_distance_of_known_pairs():
    wave = np.random.default_rng(0).normal(size=RATE)
    assert similarity.multi_resolution_stft(wave, wave) == 0
    # Convergence is 1 - gain; every logarithm differs by that of the gain.
    half = similarity.multi_resolution_stft(wave, 0.5 * wave)
    assert half == pytest.approx(0.5 + np.log(2), abs=1e-6)
    assert np.isnan(similarity.multi_resolution_stft(0 * wave, wave))


def test_with_a_floor_silent_frames_of_an_identical_pair_do_not_count():
    wave = burst(1.0)
    assert similarity.log_spectral_distance(wave, wave) > 5  # published: frames of zeros count 12
    assert similarity.log_spectral_distance(wave, wave, floor=1e-3) < 1e-8
