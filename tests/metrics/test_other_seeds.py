"""Scores of packs of other seeds than the stored one, against definitions written once more."""

import numpy as np
import pytest

from mfm_jax.metrics import av_align, distances, levels, onsets, similarity, spectra
from tests.metrics import independent as theirs
from tests.metrics.packs import RATE, pack

SEEDS = (1, 2)
SPECTRAL = ("accurate", "noisy", "silent", "loud")
"""The pairs whose spectra are compared."""
TOLERANCE = 1e-3
EXACT = 1e-9


@pytest.fixture(scope="module", params=SEEDS)
def clips(request):
    return pack(request.param)


@pytest.fixture(scope="module")
def heard(clips):
    """Each pair with its sounds at 22050 Hz, and the onsets detected in them."""
    found = []
    for pair in clips.pairs:
        waves = [onsets.resample(w, RATE) for w in (pair.reference, pair.generated)]
        found.append((pair, waves, [onsets.detect_onsets(w, delta=0.3) for w in waves]))
    return found


@pytest.mark.parity
def test_distances_of_sets(clips, parity):
    for name, pair in (
        ("24 clips of 8", [e[:, :8] for e in clips.embeddings]),
        ("24 clips of 40", clips.embeddings),
        ("9 clips of 40", [e[:9] for e in clips.embeddings]),
    ):
        kid = distances.kernel_distance(*pair)[0]
        kad = distances.kernel_audio_distance(*pair)
        root = theirs.frechet_distance(*pair)
        parity(f"FD, {name}", "definition", distances.frechet_distance(*pair), root, TOLERANCE)
        published = distances.frechet_distance_published(*pair)
        parity(f"FD published, {name}", "definition", published, root, TOLERANCE)
        parity(f"KID, {name}", "definition", kid, theirs.kid(*pair), TOLERANCE)
        parity(f"KAD, {name}", "definition", kad, theirs.kad(*pair), TOLERANCE)


@pytest.mark.parity
def test_divergences_of_logits(clips, parity):
    pair, made = clips.logits, clips.logits[1]
    for name, ours, definition in (
        ("KL softmax", distances.kl_softmax(*pair), theirs.kl_softmax(*pair)),
        (
            "KL softmax published",
            distances.kl_softmax_published(*pair),
            theirs.kl_softmax(*pair, 1e-6),
        ),
        (
            "KL sigmoid published",
            distances.kl_sigmoid_published(*pair),
            theirs.kl_sigmoid(*pair, 1e-6),
        ),
        ("KL Bernoulli", distances.kl_bernoulli(*pair), theirs.kl_bernoulli(*pair)),
        ("IS", distances.inception_score(made), theirs.inception_score(made)),
        (
            "IS published",
            distances.inception_score_published(made),
            theirs.inception_score_published(made),
        ),
    ):
        parity(f"{name}, other seeds", "definition", ours, definition, TOLERANCE)


@pytest.mark.parity
def test_onsets(heard, parity):
    waves = [wave for _, its, _ in heard for wave in its]
    strengths = np.stack([onsets.onset_strength(wave) for wave in waves])
    wanted = np.stack([theirs.onset_strength(wave) for wave in waves])
    parity("onset strength, other seeds", "definition", strengths, wanted, TOLERANCE)
    for delta in (0.07, 0.3):
        for strength, definition in zip(strengths, wanted, strict=True):
            found = onsets.pick_peaks(strength, delta=delta) * onsets.HOP
            assert found.tolist() == theirs.onsets(definition, delta)


@pytest.mark.parity
@pytest.mark.parametrize("window", [0.1, 0.3])
def test_scores_of_onsets(heard, parity, window):
    compared = []
    for pair, (_, wave), (detected, predicted) in heard:
        for targets in (detected, onsets.RATE * pair.true_seconds):
            score = onsets.score_onsets(wave, predicted, targets, window=window)
            if not len(targets):
                assert score is None
                continue
            definition = theirs.right_scores(wave, predicted.tolist(), targets.tolist(), window)
            compared.append(((score.recall, score.ap, score.f1), definition))
    assert len(compared) > 15
    parity(f"onset scores, {window} s", "definition", *zip(*compared, strict=True), EXACT)


@pytest.mark.parity
def test_published_scores_of_onsets(heard, parity):
    condfoley, mmaudio = [], []
    for pair, (_, wave), (targets, predicted) in heard:
        if not len(targets) and not len(predicted):
            continue
        level = np.abs(wave)
        level = (level - level.min()) / ((level.max() - level.min()) or 1)
        score = onsets.condfoley_published(wave, predicted, targets)
        given = level, predicted.tolist(), targets.tolist(), 0.1
        definition = theirs.published_scores(*given, shifted_level=False)
        condfoley.append(((score.accuracy, score.ap, score.f1), definition))
        if not len(pair.true_seconds) and not len(predicted):
            continue
        level = (wave - wave.min()) / (wave.max() - wave.min() + 1e-6)
        score = onsets.mmaudio_published(wave, predicted, pair.true_seconds)
        given = level, predicted.tolist(), (onsets.RATE * pair.true_seconds).tolist(), 0.3
        definition = theirs.published_scores(*given, shifted_level=True)
        mmaudio.append(((score.accuracy, score.ap, score.f1), definition))
    for name, compared in (("CondFoleyGen", condfoley), ("MMAudio", mmaudio)):
        assert len(compared) > 8
        parity(f"{name}, other seeds", "definition", *zip(*compared, strict=True), EXACT)


@pytest.mark.parity
def test_alignment(heard, parity):
    compared = []
    for number, (pair, (wave, _), _) in enumerate(heard):
        fps = 20.0 + number
        audio = onsets.detect_onsets(wave, delta=0.07) / onsets.RATE
        video = np.round(pair.true_seconds * fps) / fps
        if len(audio) or len(video):
            compared.append([f(audio, video, fps) for f in (av_align.alignment, theirs.av_align)])
    parity("AV-Align, other seeds", "definition", *zip(*compared, strict=True), EXACT)


@pytest.mark.parity
def test_spectra(clips, parity):
    for pair in clips.pairs:
        if pair.kind not in SPECTRAL:
            continue
        real, made = pair.reference, pair.generated
        mels = [spectra.unit_mel(w) for w in (real, made)]
        wanted = [theirs.unit_mel(w) for w in (real, made)]
        log_mel = spectra.cnn14_log_mel(made), theirs.cnn14_log_mel(made)
        ours = similarity.multi_resolution_stft(real, made), similarity.ssim(*mels)
        name = f"definition, {pair.kind}"
        parity("mel in [0, 1]", name, mels, wanted, 2e-4)
        parity("Cnn14 log-mel", name, *log_mel, TOLERANCE)
        definition = theirs.mrstft(real, made), theirs.ssim(*wanted)
        parity("MR-STFT, SSIM", name, ours, definition, TOLERANCE)
        parity("PSNR", name, similarity.psnr(*mels), theirs.psnr(*wanted), TOLERANCE)
        if pair.kind == "silent":
            assert np.isnan(similarity.log_spectral_distance(real, made))
            continue
        for cut in (0, similarity.PUBLISHED_CUT):
            ours = [
                score(real, made, cut=cut)
                for score in (similarity.log_spectral_distance, similarity.ssim_of_waves)
            ]
            pictures = theirs.lsd_pair(real, made, cut)
            definition = theirs.lsd(*pictures), theirs.ssim(*pictures)
            parity("LSD, SSIM of spectra", name, ours, definition, TOLERANCE)
        correlation, _ = levels.envelope_agreement(
            *(levels.envelope(w, RATE) for w in (real, made))
        )
        definition = theirs.envelope_correlation(real, made)
        parity("envelope correlation", name, correlation, definition, TOLERANCE)
