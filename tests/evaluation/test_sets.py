"""Scores of what networks hear, from plain numbers in place of networks."""

import numpy as np
import pytest

from mfm_jax.evaluation import sets
from mfm_jax.evaluation.networks import Heard
from mfm_jax.metrics import distances

N, D, V = 40, 6, 9


def heard(seed=0, shift=0.0, n=N):
    rng = np.random.default_rng(seed)
    loa = [rng.normal(size=(8, D)) + shift for _ in range(n)]
    rows = rng.normal(size=(n, D)) + shift
    return Heard({"audiomae": rows}, 2 * rng.normal(size=(n, V)), loa)


def of_sets(real, made, **more):
    found = sets.set_scores(real, made, **{"published": False, **more})
    return {r.metric.key: r.score(np.arange(len(real.loa))) for r in found}


def test_an_identical_set_is_perfect():
    real = heard()
    scores = sets.clip_scores(real, real, published=True)
    assert np.abs(scores["kl_cnn14"]).max() < 1e-12
    assert scores["kl_softmax_published"].max() < 0  # the fault: 1e-6 inside the logarithm
    assert scores["loa_error"].tolist() == [0] * N
    assert scores["loa_recall"].tolist() == [1] * N
    found = of_sets(real, real, published=True)
    assert found["fd_audiomae"] == pytest.approx(0, abs=1e-9)
    assert found["kid_audiomae"] < 0 > found["kad_audiomae"]  # unbiased, of the same clips
    assert abs(found["fd_audiomae_published"]) < 1e-3


def test_a_shuffled_set_keeps_its_distances_and_loses_its_pairs():
    real, made = heard(), heard()
    made.loa = made.loa[1:] + made.loa[:1]
    made.logits = np.roll(made.logits, 1, axis=0)
    made.embeddings["audiomae"] = np.roll(made.embeddings["audiomae"], 1, axis=0)
    scores = sets.clip_scores(real, made, published=False)
    assert scores["kl_cnn14"].mean() > 1
    assert scores["loa_recall"].mean() < 0.2
    assert scores["loa_error"].mean() == pytest.approx(2, abs=0.2)  # of independent clips
    assert of_sets(real, made)["fd_audiomae"] == pytest.approx(0, abs=1e-9)


def test_farther_sets_are_farther_by_every_distance():
    real = heard()
    near, far = (of_sets(real, heard(1, shift)) for shift in (0.5, 3.0))
    assert all(near[key] < far[key] for key in near)
    direct = distances.kernel_audio_distance(
        real.embeddings["audiomae"], heard(1, 0.5).embeddings["audiomae"]
    )
    assert near["kad_audiomae"] == pytest.approx(direct)


def test_scores_of_drawn_clips_are_those_of_the_drawn_rows():
    real, made, rows = heard(), heard(1, 0.5), np.array([3, 3, 8, 20, 31])
    (frechet, *_) = sets.set_scores(real, made, published=False)
    x, y = (h.embeddings["audiomae"][rows] for h in (real, made))
    assert frechet.score(rows) == pytest.approx(distances.frechet_distance(x, y))


def test_large_sets_are_compared_by_clips_drawn_at_random(monkeypatch):
    monkeypatch.setattr(sets, "KERNEL_CLIPS", 20)
    real, made = heard(), heard(1, 2.0)
    kid, kad = sets.set_scores(real, made, published=False)[1:]
    assert "Of 20 clips" in kid.metric.about
    assert kad.score(np.arange(N)) > 1


def test_the_inception_score_is_of_one_side():
    certain = heard()
    certain.logits = 30 * np.eye(V)[np.arange(N) % V]
    (own, published) = sets.own_scores(certain, published=True)
    everything = np.arange(N)
    assert own.score(everything) == pytest.approx(V, abs=0.1)
    assert published.score(everything) < own.score(everything)
    assert np.isnan(published.score(everything[:9]))
    assert sets.own_scores(Heard(), published=True) == []


@pytest.mark.parametrize("n", [1, 2])
def test_few_clips_have_the_scores_that_are_defined(n):
    real, made = heard(n=n), heard(1, n=n)
    scores = sets.clip_scores(real, made, published=False)
    assert np.isfinite(scores["kl_cnn14"]).all()
    assert np.isnan(scores["loa_error"]).all() == np.isnan(scores["loa_recall"]).all() == (n == 1)
    assert np.isnan(list(of_sets(real, made).values())).all() == (n == 1)


def test_real_clips_that_are_all_alike_have_no_kad():
    real = heard()
    real.embeddings["audiomae"][:] = 1.0
    found = of_sets(real, heard(1))
    assert np.isnan(found["kad_audiomae"])
    assert np.isfinite(found["kid_audiomae"])
