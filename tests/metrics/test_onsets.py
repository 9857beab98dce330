"""Onset detection against stored librosa 0.11 results, scores against the authors' scripts."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mfm_jax.metrics import onsets

SIDES = ("ref", "gen")


@pytest.fixture(scope="module")
def golden(reference):
    return json.loads((reference / "metrics/onsets.json").read_text())


@pytest.fixture(scope="module")
def strengths(reference):
    arrays = np.load(reference / "metrics/onset_arrays.npz")
    return {side: arrays[f"onset_strength_{side}"] for side in SIDES}


@pytest.fixture(scope="module")
def waves(reference):
    """All clips at 22050 Hz."""
    clips = np.load(reference / "metrics/clips.npz")
    return {
        side: [onsets.resample(w.astype(np.float32) / 32768, 16_000) for w in clips[side]]
        for side in SIDES
    }


def flat(rows, key):
    return np.array([value for row in rows for value in row[key]])


@pytest.mark.parity
def test_resample(reference, waves, parity):
    theirs = np.load(reference / "metrics/onset_arrays.npz")["upsampled_ref_00"]
    parity("resampling to 22050 Hz", "librosa soxr_hq, ref[0]", waves["ref"][0], theirs, 1e-6)


def test_resample_length_is_rounded_up():
    for n in (15_999, 16_000, 16_001):
        assert len(onsets.resample(np.zeros(n, np.float32), 16_000)) == -(-n * 22_050 // 16_000)


@pytest.mark.parity
@pytest.mark.parametrize("side", SIDES)
def test_onset_strength(waves, strengths, golden, parity, side):
    ours = np.array([onsets.onset_strength(w) for w in waves[side]])
    parity("onset strength", f"librosa 0.11, 24 {side} clips", ours, strengths[side], 1e-3)
    rows = [row for row in golden["librosa_onsets"] if row["side"] == side]
    assert [row["index"] for row in rows] == list(range(24))
    assert [row["samples"] for row in rows] == [len(w) for w in waves[side]]
    summed = np.array([row["envelope_sum"] for row in rows])
    highest = np.array([row["envelope_max"] for row in rows])
    parity("onset strength, maximum", f"librosa 0.11, {side}", ours.max(axis=1), highest, 1e-3)
    parity("onset strength, mean", f"librosa 0.11, {side}", ours.mean(1), summed / 108, 1e-3)


@pytest.mark.parity
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("delta", "key"), [(0.07, "default_delta_0_07_s"), (0.3, "delta_0_3_s")])
def test_detection(waves, strengths, golden, parity, side, delta, key):
    rows = [row for row in golden["librosa_onsets"] if row["side"] == side]
    picked = [onsets.pick_peaks(s, delta=delta) * onsets.HOP for s in strengths[side]]
    detected = [onsets.detect_onsets(w, delta=delta) for w in waves[side]]
    assert [len(p) for p in picked] == [len(row[key]) for row in rows]
    name = f"librosa 0.11, delta {delta}, {side}"
    seconds = np.concatenate(picked) / onsets.RATE
    parity("peak picking, s", name, seconds, flat(rows, key), 1e-12)
    parity("onsets from the wave", name, np.concatenate(detected), np.concatenate(picked), 0)


def test_detection_in_silence():
    assert onsets.detect_onsets(np.zeros(22_050, np.float32)).shape == (0,)


@pytest.fixture(scope="module")
def condfoley(waves, golden):
    """Per clip: golden, targets, predictions, wave, our published score."""
    assert golden["condfoleygen"]["params"]["librosa_delta"] == 0.3
    assert golden["condfoleygen"]["params"]["match_window_s"] == onsets.WINDOW
    rows = []
    for i, row in enumerate(golden["condfoleygen"]["per_clip"]):
        reference, wave = (waves[side][i][: 2 * onsets.RATE] for side in SIDES)
        targets, predicted = (onsets.detect_onsets(w, delta=0.3) for w in (reference, wave))
        score = onsets.condfoley_published(wave, predicted, targets)
        rows.append((row, targets, predicted, wave, score))
    return rows


@pytest.mark.parity
def test_condfoley_published(condfoley, golden, parity):
    rows = [row for row, *_ in condfoley]
    scores = [score for *_, score in condfoley]
    for row, targets, predicted, wave, score in condfoley:
        assert targets.tolist() == row["ref_onsets"]
        assert predicted.tolist() == row["gen_onsets"]
        assert (len(targets) == len(predicted)) == row["count_match"]
        assert list(score.kept) == row["gen_onsets_after_nms"]
        assert list(score.hits) == row["hit"]
        level = np.abs(wave)
        if level.any():
            level = (level - level.min()) / (level.max() - level.min())
        loud = onsets.loudness(level, predicted)
        np.testing.assert_allclose(loud, row["gen_confidence"], atol=1e-6)
    name = "CondFoleyGen predict_onset.py, 24 clips"
    parity("onset accuracy", name, [s.accuracy for s in scores], [r["acc"] for r in rows], 0)
    parity("onset AP", name, [s.ap for s in scores], [r["ap"] for r in rows], 1e-6)
    mean = golden["condfoleygen"]["mean"]
    matches = [len(targets) == len(predicted) for _, targets, predicted, *_ in condfoley]
    assert np.mean(matches) == mean["count_match"]
    assert len(scores) == mean["clips_scored"]
    parity("onset accuracy, mean", name, np.mean([s.accuracy for s in scores]), mean["acc"], 1e-12)
    parity("onset AP, mean", name, np.mean([s.ap for s in scores]), mean["ap"], 1e-6)


def right_scores(clips, parity, name, mean):
    """Compare `score_onsets` with the stored correct values; clips without targets have none."""
    compared = []
    for row, targets, predicted, wave, _ in clips:
        score = onsets.score_onsets(wave, predicted, targets)
        if score is None:
            assert row["right"]["acc"] is None
        else:
            stored = [row["right"][k] for k in ("acc", "ap", "f1")]
            compared.append(([score.recall, score.ap, score.f1], stored))
    ours, theirs = np.array(compared).transpose(1, 0, 2)
    parity("onset recall, AP, F1 (right)", name, ours, theirs, 1e-6)
    means = [mean[k] for k in ("acc", "ap", "f1")]
    parity("onset recall, AP, F1 (right), mean", name, ours.mean(axis=0), means, 1e-6)
    return len(compared)


@pytest.mark.parity
def test_right_scores_on_detected_targets(condfoley, golden, parity):
    mean = golden["condfoleygen"]["right_mean"]
    assert right_scores(condfoley, parity, "golden, detected targets", mean) == 24


@pytest.fixture(scope="module")
def mmaudio(waves, golden):
    rows = []
    for wave, row in zip(waves["gen"], golden["mmaudio"]["per_clip"], strict=True):
        predicted = onsets.detect_onsets(wave, delta=0.3)
        true = np.array(row["true_onsets_s"], np.float64)
        score = onsets.mmaudio_published(wave, predicted, true)
        rows.append((row, true * onsets.RATE, predicted, wave, score))
    return rows


@pytest.mark.parity
def test_mmaudio_published(mmaudio, golden, parity):
    rows = [row for row, *_ in mmaudio]
    scores = [score for *_, score in mmaudio]
    for row, _, predicted, _, score in mmaudio:
        assert predicted.tolist() == row["gen_onsets"]
        assert list(score.kept) == row["gen_onsets_after_nms"]
        assert list(score.labels) == row["y"]
    name = "MMAudio eval_onsets.py, 24 clips"
    confidences = np.concatenate([s.scores for s in scores])
    parity("onset confidences", name, confidences, flat(rows, "score"), 1e-6)
    parity("onset accuracy", name, [s.accuracy for s in scores], [r["acc"] for r in rows], 0)
    parity("onset AP", name, [s.ap for s in scores], [r["ap"] for r in rows], 1e-6)
    parity("onset F1", name, [s.f1 for s in scores], [r["f1"] for r in rows], 1e-6)
    mean = golden["mmaudio"]["mean"]
    assert len(scores) == mean["clips_scored"]
    ours = [np.mean([getattr(s, k) for s in scores]) for k in ("accuracy", "ap", "f1")]
    parity("onset accuracy, AP, F1, mean", name, ours, [mean[k] for k in ("acc", "ap", "f1")], 1e-6)


@pytest.mark.parity
def test_right_scores_on_annotated_targets(mmaudio, golden, parity):
    mean = golden["mmaudio"]["right_mean"]
    assert right_scores(mmaudio, parity, "golden, annotated targets", mean) == 23


def test_mmaudio_reads_truth_up_to_the_first_time_past_8_s():
    wave = np.zeros(8 * onsets.RATE)
    wave[11_025] = 1.0
    score = onsets.mmaudio_published(wave, np.array([11_025]), np.array([0.5, 8.0, 1.0]))
    assert (score.accuracy, score.labels) == (1.0, (1,))


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        ([1, 0, 1], [0.9, 0.8, 0.7], (1 + 2 / 3) / 2),
        ([1, 0, 1, 0], [0.5, 0.5, 0.5, 0.5], 0.5),  # ties are one step
        ([0, 0], [0.3, 0.2], 0.0),
        ([0, 1], [0.9, 0.1], 0.5),
    ],
)
def test_average_precision(labels, scores, expected):
    assert onsets.average_precision(labels, scores) == pytest.approx(expected, abs=1e-12)


times = st.lists(st.integers(0, 4 * onsets.RATE - 1), max_size=12, unique=True).map(
    lambda t: np.array(sorted(t), np.int64)
)


@settings(deadline=None, max_examples=50)
@given(predicted=times, targets=times, seed=st.integers(0, 99))
def test_right_score_properties(predicted, targets, seed):
    wave = np.random.default_rng(seed).standard_normal(4 * onsets.RATE)
    score = onsets.score_onsets(wave, predicted, targets)
    assert (score is None) == (not len(targets))
    if score is None:
        return
    assert 0 <= score.ap <= score.recall <= 1
    assert 0 <= score.f1 <= 1
    assert 0 <= score.precision <= 1
    kept = onsets.suppress(predicted, onsets.loudness(wave, predicted))
    assert np.all(np.diff(kept) >= onsets.APART)
    own = onsets.score_onsets(wave, kept, kept) if len(kept) else None
    assert own is None or own == onsets.OnsetScore(recall=1.0, precision=1.0, f1=1.0, ap=1.0)
