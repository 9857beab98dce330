"""Frames that each encoder sees of a video, against exact arithmetic and the goldens."""

import json
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mfm_jax.media import windows
from mfm_jax.text.timestamps import timestamp_sentences
from tests.windows import pair_spec


@given(
    gaps=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    fps=st.sampled_from([1, 4, 8, 12.5, 21.5]),
)
def test_cavp_slots_show_the_newest_frame_that_has_begun(gaps, fps):
    ticks = np.cumsum([0, *gaps])
    chosen = windows.cavp_frame_indices(ticks / 1000, fps, 30)
    # Halves up, in exact arithmetic.
    slots = [(Fraction(int(t), 1000) * Fraction(fps) + Fraction(1, 2)).__floor__() for t in ticks]
    assert chosen.tolist() == [max(i for i, s in enumerate(slots) if s <= k) for k in range(30)]


def test_before_the_first_frame_the_first_is_shown():
    assert windows.cavp_frame_indices(np.array([0.9, 1.1]), 4, 6).tolist() == [0, 0, 0, 0, 1, 1]


@pytest.mark.parametrize("rate", [10, 15, 24, 25, 29.97, 60, 240])
def test_cavp_slots_say_when_their_frames_were(rate):
    """An object that is at `x` after `x` seconds is seen at the time of the slot."""
    times = np.arange(round(4 * rate)) / rate
    picked = windows.cavp_frame_indices(times, 12.5, 48)
    seconds = windows.cavp_frame_seconds(times, picked, 12.5)
    if rate >= 12.5:
        np.testing.assert_allclose(seconds, times[picked])
    assert np.abs(seconds - np.arange(48) / 12.5).max() <= 0.04 + 1e-9
    assert (np.diff(seconds) >= 0).all()


def test_a_frame_that_stays_on_is_told_apart_by_its_slots():
    picked = windows.cavp_frame_indices(np.array([0.0]), 4, 3)
    assert windows.cavp_frame_seconds(np.array([0.0]), picked, 4).tolist() == [0.0, 0.125, 0.375]


def test_timechat_frames_and_sentences(reference):
    golden = json.loads((reference / "timechat" / "golden" / "frame_sampling.json").read_text())
    for case in golden["cases"]:
        chosen = windows.timechat_frame_indices(case["num_frames_in_file"], case["n_frms"])
        assert chosen.tolist() == case["indices"]
        assert timestamp_sentences(chosen / case["fps"]) == case["sentences"]
    assert len(golden["cases"]) == 12


@given(frames=st.integers(1, 4000), count=st.integers(1, 200))
def test_timechat_frames_lie_in_the_file_and_do_not_repeat(frames, count):
    chosen = windows.timechat_frame_indices(frames, count)
    assert len(chosen) == min(frames, count)
    assert chosen[0] == 0
    assert chosen[-1] < frames
    assert np.all(np.diff(chosen) > 0)


@given(
    seconds=st.floats(0.04, 100),
    window=st.floats(0.5, 12),
    share=st.floats(0, 0.5),
)
def test_windows_cover_the_video_and_none_is_for_next_to_nothing(seconds, window, share):
    spec = pair_spec(window, window * share)
    starts = spec.starts(seconds)
    assert starts[0] == 0
    assert starts[-1] + window >= seconds - windows.SLACK - 1e-4
    assert all(start + window < seconds - windows.SLACK for start in starts[:-1])
    np.testing.assert_allclose(np.diff(starts), window * (1 - share))


@pytest.mark.parametrize("wrong", [{"overlap": -0.1}, {"overlap": 6.0}, {"cavp_fps": 0.05}])
def test_a_window_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"windows of 10\.24 s"):
        pair_spec(**wrong)


def test_real_windows_have_forty_and_ninety_six_frames():
    assert pair_spec().views["cavp"].count(10.24) == 40
    assert pair_spec(2.56, 0, cavp_fps=12.5).views["cavp"].count(2.56) == 32
