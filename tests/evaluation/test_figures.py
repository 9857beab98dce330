"""Means, set scores and comparisons have the intervals and verdicts that are known of them."""

import math

import numpy as np
import pytest

from mfm_jax.evaluation.catalogue import Metric
from mfm_jax.evaluation.figures import (
    mean_difference,
    mean_figure,
    ranks,
    set_difference,
    set_figure,
)

UP = Metric("up", "up", "g", "higher", "", "")
DOWN = Metric("down", "down", "g", "lower", "", "", 100, per_clip=False)
NAN = math.nan


def test_a_mean_leaves_undefined_clips_out_and_says_so():
    figure = mean_figure(UP, np.array([1.0, NAN, 3.0]))
    assert (figure.value, figure.n, figure.left_out) == (2.0, 2, 1)
    assert figure.caution == "2 clips: the interval is too narrow below 30"
    nothing = mean_figure(UP, np.array([NAN, NAN]))
    assert (nothing.value, nothing.n, nothing.left_out) == (None, 0, 2)


def test_one_clip_has_no_interval():
    figure = mean_figure(UP, np.array([0.5]))
    assert (figure.value, figure.low, figure.high) == (0.5, None, None)
    assert figure.caution == "one clip: no interval"


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(1).normal(size=400)
    figure = mean_figure(UP, values)
    half = 1.96 * values.std() / 20
    assert figure.low == pytest.approx(values.mean() - half, abs=0.01)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.01)
    assert not figure.caution
    assert mean_figure(UP, np.full(40, 0.25)).low == 0.25


def test_a_set_score_is_inside_its_interval_even_where_drawing_biases_it():
    values = np.random.default_rng(2).normal(size=50)

    def distinct(rows):
        return float(len(set(rows.tolist()))) + values[rows].mean()

    figure = set_figure(DOWN, distinct, 50, 1)
    assert figure.low < figure.value < figure.high
    assert figure.caution == "50 clips, of the 100 that this score needs"
    assert set_figure(DOWN, lambda rows: NAN, 50, 1).value is None


@pytest.mark.parametrize(("gap", "verdict"), [(0.5, "better"), (-0.5, "worse"), (0.0, "undecided")])
def test_a_paired_test_finds_what_is_there(gap, verdict):
    rng = np.random.default_rng(3)
    theirs = rng.normal(size=60)
    ours = theirs + gap + 0.3 * rng.normal(size=60)
    ours += gap - (ours - theirs).mean()
    found = mean_difference(UP, ours, theirs)
    assert found.value == pytest.approx(gap, abs=1e-9)
    assert found.verdict == verdict
    assert (found.p < 0.01) == bool(gap)


def test_equal_systems_are_undecided_and_p_is_right_by_chance():
    same = np.arange(10.0)
    assert mean_difference(UP, same, same).p == 1
    rng = np.random.default_rng(4)
    found = [mean_difference(UP, *rng.normal(size=(2, 20))).p for _ in range(40)]
    assert 0.3 < np.median(found) < 0.7
    assert mean_difference(UP, np.array([1.0, NAN]), np.array([0.0, 1.0])).n == 1


def test_set_scores_are_compared_on_the_same_clips():
    values = np.random.default_rng(5).normal(size=(2, 80))
    better = set_difference(
        DOWN, lambda r: values[0][r].mean(), lambda r: values[0][r].mean() + 1, 80, 1
    )
    assert better.value == pytest.approx(-1)
    assert better.verdict == "better"
    same = set_difference(DOWN, lambda r: values[1][r].sum(), lambda r: values[1][r].sum(), 80, 1)
    assert (same.p, same.verdict) == (1, "undecided")


def test_ranks_put_the_worst_clip_lowest_and_skip_what_is_undefined():
    scores = [{"up": 0.1, "low": 3.0}, {"up": 0.9, "low": 1.0}, {"up": 0.5}, {"up": NAN}]
    metrics = [UP, UP._replace(key="low", better="lower"), UP._replace(key="none", better="")]
    found = ranks(metrics, scores)
    assert list(np.argsort(found[:3])) == [0, 2, 1]
    assert found[3] == 0
    assert np.isnan(ranks([UP], [{}])).all()
