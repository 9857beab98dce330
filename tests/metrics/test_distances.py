"""Distances on stored Cnn14 outputs against audioldm_eval and av-benchmark."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfm_jax.metrics import distances as ours


@pytest.fixture(scope="module")
def golden(reference):
    return json.loads((reference / "metrics/features.json").read_text())


@pytest.fixture(scope="module")
def cnn14(reference):
    arrays = np.load(reference / "metrics/cnn14.npz")
    return {k: arrays[k] for k in ("emb_ref", "emb_gen", "logits_ref", "logits_gen")}


@pytest.mark.parity
@pytest.mark.parametrize("k", [4, 8, 16])
def test_frechet_distance(golden, cnn14, parity, k):
    x, y = cnn14["emb_ref"][:, :k], cnn14["emb_gen"][:, :k]
    published, right = ours.frechet_distance_published(x, y), ours.frechet_distance(x, y)
    theirs, bench = golden["audioldm_eval"], golden["av_benchmark"]
    name = f"FD published, first {k}"
    parity(name, "audioldm_eval", published, theirs[f"frechet_distance_first{k}"], 1e-5)
    parity(name, "av-benchmark", published, bench[f"fd_first{k}"], 1e-5)
    exact = theirs[f"frechet_distance_first{k}_exact_ours"]
    parity(f"FD, first {k}", "golden right", right, exact, 1e-5)


@pytest.mark.parity
def test_frechet_distance_2048(golden, cnn14, parity):
    """Only our distance: the published root of a 2048 x 2048 matrix takes half a minute."""
    score = ours.frechet_distance(cnn14["emb_ref"], cnn14["emb_gen"])
    right = golden["right"]["frechet_distance_2048"]
    assert right == golden["audioldm_eval"]["frechet_distance_2048_exact_ours"]
    parity("FD, 2048", "golden right", score, right, 1e-8)
    sqrtm = golden["fd_2048_sqrtm"]
    parity("FD, 2048", "audioldm_eval sqrtm", score, sqrtm["audioldm_eval"], 1e-3)
    parity("FD, 2048", "av-benchmark sqrtm", score, sqrtm["av_benchmark"], 1e-3)
    itself = ours.frechet_distance(cnn14["emb_ref"], cnn14["emb_ref"])
    parity("FD, 2048, against itself", "zero", itself, 0.0, 1e-9)
    parity("FD, 2048, against itself", "audioldm_eval", itself, sqrtm["audioldm_eval_self"], 1e-3)


@pytest.mark.parity
def test_kl_softmax(golden, cnn14, parity):
    pair = cnn14["logits_ref"], cnn14["logits_gen"]
    old, bench = golden["audioldm_eval"], golden["av_benchmark"]
    published, right = ours.kl_softmax_published(*pair), ours.kl_softmax(*pair)
    parity(
        "KL softmax published, clips", "audioldm_eval", published, old["kl_softmax_per_clip"], 1e-5
    )
    parity("KL softmax, clips", "av-benchmark", right, bench["kl_softmax_per_clip"], 1e-5)
    mean = old["kullback_leibler_divergence_softmax"]
    parity("KL softmax published", "audioldm_eval", published.mean(), mean, 1e-5)
    parity("KL softmax", "av-benchmark", right.mean(), bench["kl_softmax"], 1e-5)
    parity("KL softmax", "golden right", right.mean(), golden["right"]["kl_softmax"], 1e-9)


@pytest.mark.parity
def test_kl_sigmoid(golden, cnn14, parity):
    pair = cnn14["logits_ref"], cnn14["logits_gen"]
    old, right = golden["audioldm_eval"], golden["right"]
    published = ours.kl_sigmoid_published(*pair)
    parity(
        "KL sigmoid published, clips", "audioldm_eval", published, old["kl_sigmoid_per_clip"], 1e-4
    )
    mean = old["kullback_leibler_divergence_sigmoid"]
    parity("KL sigmoid published", "audioldm_eval", published.mean(), mean, 1e-4)
    bench = ours.kl_sigmoid_published(*pair, epsilon=0.0).mean()
    parity(
        "KL sigmoid published", "av-benchmark", bench, golden["av_benchmark"]["kl_sigmoid"], 1e-4
    )
    bernoulli = ours.kl_bernoulli(*pair)
    parity("KL Bernoulli, clips", "golden right", bernoulli, right["kl_bernoulli_per_clip"], 1e-4)
    parity("KL Bernoulli", "golden right", bernoulli.mean(), right["kl_bernoulli"], 1e-4)


@pytest.mark.parity
def test_inception_score(golden, cnn14, parity):
    logits, theirs = cnn14["logits_gen"], golden["audioldm_eval"]
    assert ours.published_order(24).tolist() == theirs["permutation_seed2020"]
    scores = ours.inception_score_published(logits)
    keys = ("inception_score_mean", "inception_score_std")
    parity("IS published", "audioldm_eval", scores, [theirs[k] for k in keys], 1e-6)
    parity("IS published", "av-benchmark", scores, [golden["av_benchmark"][k] for k in keys], 1e-6)
    for splits in (1, 2, 5):
        scores = ours.inception_score_published(logits, splits=splits)
        wanted = [theirs[f"{k}_splits{splits}"] for k in keys]
        parity(f"IS published, {splits} splits", "audioldm_eval", scores, wanted, 1e-6)
    unshuffled = ours.inception_score_published(logits, shuffle=False)[0]
    wanted = theirs["inception_score_mean_noshuffle"]
    parity("IS published, not shuffled", "audioldm_eval", unshuffled, wanted, 1e-6)
    one = theirs["inception_score_mean_splits1"]
    parity("IS", "golden, one split", ours.inception_score(logits), one, 1e-6)


@pytest.mark.parity
def test_kernel_distance(golden, cnn14, parity):
    score = ours.kernel_distance(cnn14["emb_ref"], cnn14["emb_gen"])
    theirs = [golden["audioldm_eval"][f"kid_all_clips_{k}"] for k in ("mean", "std")]
    parity("KID, mean and spread", "audioldm_eval", score, theirs, 1e-6)
    bench = golden["av_benchmark"]["kid_all_clips_mean"]
    parity("KID", "av-benchmark", score[0], bench, 1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), n=st.integers(3, 12), d=st.integers(1, 8), extra=st.integers(0, 5))
def test_frechet_distance_properties(seed, n, d, extra):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n + extra, d)) * 2.0
    assert ours.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    assert ours.frechet_distance(x, y) == pytest.approx(ours.frechet_distance(y, x), abs=1e-9)
    assert ours.frechet_distance(x, x + 3.0) == pytest.approx(9.0 * d, abs=1e-8)
    turned = np.linalg.qr(rng.standard_normal((d, d)))[0]
    assert ours.frechet_distance(x @ turned, y @ turned) == pytest.approx(
        ours.frechet_distance(x, y), abs=1e-8
    )


def test_frechet_distance_of_one_number_is_the_closed_form():
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [9.0]])
    spread = x.std(ddof=1), y.std(ddof=1)
    assert ours.frechet_distance(x, y) == pytest.approx(16.0 + (spread[0] - spread[1]) ** 2)
    assert ours.frechet_distance_published(x, y) == pytest.approx(ours.frechet_distance(x, y))


def test_divergences_are_zero_only_for_equal_clips():
    logits = np.random.default_rng(0).standard_normal((3, 7)) * 4.0
    for divergence in (ours.kl_softmax, ours.kl_bernoulli):
        assert np.abs(divergence(logits, logits)).max() < 1e-12
        assert divergence(logits, logits[::-1])[0] > 0.1


def test_inception_score_between_one_and_the_number_of_classes():
    assert ours.inception_score(np.zeros((6, 4))) == pytest.approx(1.0)
    assert ours.inception_score(np.eye(4) * 60.0) == pytest.approx(4.0)


def test_kernel_distance_draws_subsets_and_is_unbiased():
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((60, 3)), rng.standard_normal((50, 3))
    mean, spread = ours.kernel_distance(x, y, subsets=20, size=25)
    assert spread > 0
    assert abs(mean) < 3 * spread
    assert ours.kernel_distance(x, y + 2.0, subsets=20, size=25)[0] > 1.0


@pytest.mark.parametrize("score", [ours.frechet_distance, ours.kernel_distance])
def test_one_clip_is_one_clear_line(score):
    with pytest.raises(ValueError, match="at least two clips"):
        score(np.zeros((1, 4)), np.zeros((5, 4)))
