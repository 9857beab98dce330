import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfm_jax.foley.contacts import (
    BEFORE,
    CROP,
    QUIET,
    Counts,
    count_hits,
    crops,
    detect_contacts,
    match,
    name_materials,
)
from mfm_jax.foley.world import World, generate_clip
from mfm_jax.media.audio import RATE, log_mel


def clicks(times, seconds=2.56, level=0.4, decay=0.03):
    wave = np.zeros(round(seconds * RATE), np.float32)
    t = np.arange(int(0.2 * RATE)) / RATE
    ring = level * np.exp(-t / decay) * np.sin(2 * np.pi * 700 * t)
    for time in times:
        start = round(time * RATE)
        tail = wave[start : start + len(ring)]
        tail += ring[: len(tail)]
    return wave


def test_clicks_are_found_within_ten_milliseconds():
    times = np.array([0.21, 0.5, 1.113, 1.9, 2.4])
    np.testing.assert_allclose(detect_contacts(log_mel(clicks(times))), times, atol=0.01)


def test_a_quieter_click_is_found_as_well_but_not_an_inaudible_one():
    assert len(detect_contacts(log_mel(clicks([1.0], level=0.05)))) == 1
    assert len(detect_contacts(log_mel(clicks([1.0], level=1e-4)))) == 0


@pytest.mark.parametrize("level", [0.0, 1e-5, 1e-4])
def test_silence_and_hum_have_no_contacts(level):
    noise = level * np.random.default_rng(0).standard_normal(2 * RATE).astype(np.float32)
    assert len(detect_contacts(log_mel(noise))) == 0


def test_contacts_of_true_foley_sound_are_found():
    total = Counts()
    for seed in range(40):
        made = generate_clip(World(), seed)
        times = np.array([event.time for event in made.events])
        if made.scene.bodies[0].kind != "roll":  # whose noise has onsets of its own
            total += count_hits(detect_contacts(log_mel(made.audio)), times, 0.05)
    assert total.true > 80
    assert total.f1 > 0.98


times = st.lists(st.floats(0, 3, allow_nan=False), max_size=12).map(np.array)


@settings(max_examples=50, deadline=None)
@given(times, times, st.floats(0.01, 0.3))
def test_a_match_pairs_each_once_and_only_what_is_near(found, true, window):
    found, true = found.astype(np.float64), true.astype(np.float64)
    pairs = match(found, true, window)
    assert all(abs(found[i] - true[j]) <= window for i, j in pairs)
    assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
    # Nothing that could still be paired is left.
    left = [i for i in range(len(found)) if i not in {a for a, _ in pairs}]
    free = [j for j in range(len(true)) if j not in {b for _, b in pairs}]
    assert not any(abs(found[i] - true[j]) <= window for i in left for j in free)


def test_a_contact_counts_once_however_often_it_is_found():
    counts = count_hits(np.array([0.98, 1.0, 1.02]), np.array([1.0]), 0.05)
    assert counts == Counts(hits=1, found=3, true=1)
    assert counts.f1 == 0.5


def test_with_labels_only_the_right_ones_hit():
    found, true = np.array([0.5, 1.0]), np.array([0.5, 1.0])
    right, swapped = np.array([3, 5]), np.array([5, 3])
    assert count_hits(found, true, 0.05, right, right).hits == 2
    assert count_hits(found, true, 0.05, swapped, right).hits == 0
    # A label may be found at another contact of the same label nearby.
    assert count_hits(np.array([0.52, 0.5]), true[:1], 0.05, right, right[:1]).hits == 1


def test_f1_of_nothing_is_nothing():
    assert Counts().f1 == 0


def test_a_crop_begins_before_its_contact_and_is_silent_outside_of_the_clip():
    mel = np.tile(np.arange(50, dtype=np.float32)[:, None], (1, 64))
    early, late, beyond = crops(mel, np.array([0.0, 0.3, 9.0]))
    assert early.shape == (CROP, 64)
    assert (early[:BEFORE] < QUIET).all()
    np.testing.assert_array_equal(early[BEFORE:, 0], np.arange(CROP - BEFORE))
    np.testing.assert_array_equal(late[: 50 - 30 + BEFORE, 0], np.arange(30 - BEFORE, 50))
    assert (late[50 - 30 + BEFORE :] < QUIET).all()
    assert (beyond[BEFORE:] < QUIET).all()


def test_materials_are_named_by_all_contacts_together():
    chances = np.array([[0.6, 0.4, 0.0], [0.1, 0.5, 0.4], [0.2, 0.5, 0.3]])
    np.testing.assert_array_equal(name_materials(chances, 1), [1])
    np.testing.assert_array_equal(name_materials(chances, 2), [1, 0])
