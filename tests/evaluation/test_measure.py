"""The scores of one clip for sounds whose scores are known."""

from pathlib import Path

import numpy as np
import pytest

from mfm_jax.evaluation.clips import Sound
from mfm_jax.evaluation.measure import Picture, Wave, measure

RATE = 16_000


def strikes(times, rate=RATE, seconds=2.5, level=0.5):
    """Return decaying strikes of a low tone: loud, with sharp onsets, the same at every rate."""
    t = np.arange(round(seconds * rate)) / rate
    wave = np.zeros_like(t)
    for time in times:
        since = np.maximum(t - time, 0)
        wave += (t >= time) * np.exp(-18 * since) * np.sin(2 * np.pi * 700 * since)
    return Wave((level * wave).astype(np.float32), rate)


REAL = strikes((0.5, 1.2, 1.9))


def scores(wave, real=REAL, **more):
    return measure("clip", real, {"made": wave}, None, **more).scores["made"]


def test_an_identical_sound_is_perfect():
    found = scores(REAL)
    for key in ("accuracy", "ap", "f1"):
        assert found[f"onset_{key}_100"] == found[f"onset_{key}_300"] == 1
    for key in ("envelope_lag", "mrstft", "loudness_gap", "silent", "clipped"):
        assert found[key] == 0, key
    assert found["lsd"] < 1e-8
    assert (found["psnr"], found["ssim"]) == (100, 1)
    assert found["envelope_correlation"] == pytest.approx(1)


@pytest.mark.parametrize(("late", "near", "wide"), [(0.05, 1, 1), (0.2, 0, 1), (0.34, 0, 0)])
def test_shifted_onsets_are_hits_within_the_tolerance(late, near, wide):
    found = scores(strikes(np.array((0.5, 1.2, 1.9)) + late))
    assert (found["onset_f1_100"], found["onset_f1_300"]) == (near, wide)
    assert found["envelope_lag"] == pytest.approx(late, abs=0.011)


@pytest.mark.parametrize("rate", [8_000 * 2, 22_050, 44_100, 48_000])
def test_other_rates_give_the_same_scores(rate):
    found = scores(strikes((0.5, 1.2, 1.9), rate))
    assert found["onset_f1_100"] == 1
    assert found["envelope_correlation"] == pytest.approx(1, abs=1e-3)
    assert found["loudness_gap"] == pytest.approx(0, abs=0.11)
    assert found["ssim"] > 0.9


def test_a_silent_generation_is_told_and_scores_nothing():
    found = scores(Wave(np.zeros_like(REAL.own), RATE))
    assert (found["silent"], found["onset_f1_100"], found["onset_ap_100"]) == (1, 0, 0)
    assert np.isnan(found["lsd"])
    assert np.isnan(found["loudness"])
    assert np.isnan(found["envelope_correlation"])
    assert found["loudness_gap"] > 20  # from -70 LUFS, the least that is measured


def test_a_silent_real_clip_leaves_out_what_is_undefined():
    found = scores(REAL, Wave(np.zeros_like(REAL.own), RATE))
    undefined = {key for key, value in found.items() if np.isnan(value)}
    assert {"onset_f1_100", "onset_ap_300", "lsd", "mrstft", "envelope_lag"} <= undefined
    both = Wave(np.zeros(RATE, np.float32), RATE)
    assert np.isnan(scores(both, both)["loudness_gap"])


def test_a_sound_twice_as_loud_is_6_lu_louder_and_clips():
    found = scores(Wave(np.clip(4 * REAL.own, -1, 1), RATE))
    assert found["clipped"] == 1
    assert found["onset_f1_100"] == 1
    assert scores(Wave(2 * REAL.own, RATE))["loudness_gap"] == pytest.approx(6.02, abs=0.11)


def test_very_short_sounds_have_no_picture_to_compare():
    short = Wave(REAL.own[8_000:8_060], RATE)
    assert np.isnan(scores(short)["ssim"])


def test_annotated_onsets_take_the_place_of_detected_ones():
    found = measure("clip", REAL, {"made": REAL}, None, annotated=np.array([0.5, 1.0]))
    assert found.contacts == [0.5, 1.0]
    assert found.scores["made"]["onset_accuracy_100"] == 0.5


def test_av_align_is_that_of_each_side():
    flow = np.zeros(62)
    flow[[12, 30, 47]] = 5.0  # peaks at 0.52, 1.24 and 1.92 s
    picture = Picture(flow, 25.0, [], Sound(Path("clip.mp4")))
    late = strikes(np.array((0.5, 1.2, 1.9)) + 0.3)
    found = measure("clip", REAL, {"made": late}, picture, published=True).scores
    assert found["reference"]["av_align"] > 0.7
    assert found["made"]["av_align"] == 0
    assert found["made"]["av_align_published"] == 0


def test_published_scores_keep_their_faults():
    """An identical pair is about 1 in LSD, its PSNR is left out, and silence has an AP of 1."""
    rng = np.random.default_rng(0)
    noisy = Wave(REAL.own + 0.01 * rng.normal(size=len(REAL.own)).astype(np.float32), RATE)
    found = scores(noisy, noisy, published=True)
    assert 0.5 < found["lsd_published"] < 1.5
    assert found["lsd"] < 1e-8
    assert np.isnan(found["psnr_published"])
    assert np.isnan(found["ssim_published"])
    silent = scores(Wave(np.zeros_like(REAL.own), RATE), published=True)
    assert (silent["condfoley_ap"], silent["mmaudio_ap"], silent["onset_ap_100"]) == (1, 1, 0)
