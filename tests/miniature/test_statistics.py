import numpy as np
import pytest

from miniature.statistics import (
    Difference,
    Ratio,
    difference,
    recall_at_1,
    smallest_share,
)


def means(values):
    """Return the ratio of a mean over clips, with a row for each seed."""
    values = np.asarray(values, float)
    return Ratio(values, np.ones_like(values))


def test_an_f1_is_that_of_all_clips_together():
    hits, found, true = [[2, 0, 1], [0, 0, 0]], [[2, 1, 4], [0, 0, 0]], [[2, 3, 1], [2, 3, 1]]
    ratio = Ratio(2.0 * np.array(hits), np.array(found, float) + np.array(true, float))
    # 3 hits of 7 found and 6 true; then nothing found at all.
    np.testing.assert_allclose(ratio.values, [2 * 3 / (7 + 6), 0.0])


def test_where_there_is_nothing_at_all_a_score_is_zero():
    assert Ratio(np.zeros((1, 2)), np.zeros((1, 2))).values == 0


def test_drawing_every_clip_once_is_the_score_itself():
    ratio = Ratio(np.array([[1.0, 2.0], [0.0, 4.0]]), np.array([[2.0, 4.0], [4.0, 4.0]]))
    once = ratio.resampled(np.ones((1, 2)), np.full((1, 2), 0.5))
    np.testing.assert_allclose(once, [(3 / 6 + 4 / 8) / 2])
    # The second clip twice, and the first seed alone.
    np.testing.assert_allclose(
        ratio.resampled(np.array([[0.0, 2.0]]), np.array([[1.0, 0.0]])), [4 / 8]
    )


def test_the_interval_sees_pairs():
    """A difference that is the same for every clip and seed has an interval of width 0."""
    values = np.random.default_rng(0).standard_normal((3, 40))
    gap = difference(means(values + 0.25), means(values), draws=500)
    assert (gap.value, gap.low, gap.high) == pytest.approx((0.25, 0.25, 0.25))
    same = difference(means(values), means(values), draws=500)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_the_interval_of_one_seed_is_that_of_the_mean_over_clips():
    gaps = np.random.default_rng(1).standard_normal((1, 400))
    gap = difference(means(gaps), means(np.zeros_like(gaps)))
    half = 1.96 * gaps.std() / np.sqrt(400)
    assert gap.value == pytest.approx(gaps.mean())
    assert gap.low == pytest.approx(gaps.mean() - half, abs=0.05 * half)
    assert gap.high == pytest.approx(gaps.mean() + half, abs=0.05 * half)


@pytest.mark.parametrize(("by_clip", "by_seed"), [(1.0, 0.0), (0.2, 0.5)], ids=["clips", "seeds"])
def test_the_interval_holds_the_truth_as_often_as_it_says(by_clip, by_seed):
    """Coverage with variance between clips and between seeds; few seeds make it a little low."""
    rng, inside, times = np.random.default_rng(2), 0, 200
    for _ in range(times):
        gaps = 0.3 + by_clip * rng.standard_normal((1, 60)) + by_seed * rng.standard_normal((8, 1))
        easy = rng.standard_normal((8, 60))  # how easy a clip is, for both alike
        gap = difference(means(easy + gaps), means(easy), draws=400)
        inside += gap.low <= 0.3 <= gap.high
    assert 0.87 <= inside / times <= 0.99


def test_other_clips_or_seeds_are_no_pairs():
    with pytest.raises(ValueError, match="are not paired: score both on the same clips and seeds"):
        difference(means(np.ones((2, 3))), means(np.ones((1, 3))))


@pytest.mark.parametrize(
    ("low", "high", "higher", "verdict"),
    [
        (0.1, 0.3, True, "holds"),
        (0.1, 0.3, False, "fails"),
        (-0.3, -0.1, True, "fails"),
        (-0.3, -0.1, False, "holds"),
        (-0.1, 0.3, True, "undecided"),
        (0.0, 0.0, True, "undecided"),
    ],
)
def test_a_verdict_needs_an_interval_beside_zero(low, high, higher, verdict):
    assert Difference((low + high) / 2, low, high).verdict(higher=higher) == verdict


def test_a_clip_is_found_where_its_loa_is_the_nearest():
    rng = np.random.default_rng(3)
    true = rng.standard_normal((9, 2, 5))
    np.testing.assert_array_equal(recall_at_1(3 * true, true, group=9), np.ones(9))
    swapped = true[[1, 0, 2, 3, 4, 5, 6, 7, 8]]
    np.testing.assert_array_equal(recall_at_1(swapped, true, group=9), [0, 0, *[1] * 7])
    # Only among the clips of its own group; the ninth fills none.
    far = true.copy()
    far[0] = true[4]
    np.testing.assert_array_equal(recall_at_1(far, true, group=9)[0], 0)
    close = recall_at_1(0.9 * true + 0.1 * far, true, group=4)
    np.testing.assert_array_equal(close, np.ones(8))


def test_predicting_the_same_for_all_finds_one_clip_in_a_group():
    true = np.random.default_rng(4).standard_normal((128, 3, 4))
    assert recall_at_1(np.broadcast_to(true.mean(axis=0), true.shape), true).sum() == 2


@pytest.mark.parametrize(
    ("target", "higher", "share"),
    [(0.55, True, 0.16), (0.5, True, 0.08), (0.9, True, None), (0.5, False, 0.04)],
)
def test_the_smallest_share_that_is_as_good(target, higher, share):
    values = {0.04: 0.3, 0.08: 0.5, 0.16: 0.7, 0.32: 0.6}
    assert smallest_share(values, target, higher=higher) == share
