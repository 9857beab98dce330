"""Paired spectrogram scores against audioldm_eval, ssr_eval and scikit-image."""

import json

import numpy as np
import pytest

from mfm_jax.metrics import similarity, spectra


@pytest.fixture(scope="module")
def golden(reference):
    return json.loads((reference / "metrics/features.json").read_text())


@pytest.fixture(scope="module")
def pairs(reference):
    """Waves of all pairs, without their means."""
    clips = np.load(reference / "metrics/clips.npz")
    waves = {side: clips[side].astype(np.float32) / 32768 for side in ("ref", "gen")}
    return [tuple(w - w.mean() for w in (waves["ref"][i], waves["gen"][i])) for i in range(24)]


@pytest.fixture(scope="module")
def mels(pairs):
    return [tuple(spectra.unit_mel(w) for w in pair) for pair in pairs]


def finite(rows, key):
    """Return indices and values where the original gave a number."""
    return zip(*[(r["index"], r[key]) for r in rows if r.get(key) is not None], strict=True)


@pytest.mark.parity
@pytest.mark.parametrize(("score", "tolerance"), [("psnr", 1e-3), ("ssim", 1e-4)])
def test_pictures(mels, golden, parity, score, tolerance):
    theirs = golden["audioldm_eval"]
    indices, wanted = finite(theirs["paired_per_clip"], score)
    assert set(range(24)) - set(indices) == {19}  # the identical pair
    ours = [getattr(similarity, score)(*mels[i]) for i in indices]
    parity(f"{score.upper()}, clips", "audioldm_eval", ours, wanted, tolerance)
    parity(f"{score.upper()}, mean", "audioldm_eval", np.mean(ours), theirs[score], tolerance)


@pytest.mark.parity
def test_all_pairs_ssim(mels, golden, parity):
    ours = np.mean([similarity.ssim(*pair) for pair in mels])
    parity("SSIM, all pairs", "golden right", ours, golden["right"]["ssim_all_pairs"], 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("key", "score", "tolerance", "cut", "swapped"),
    [
        ("lsd", similarity.log_spectral_distance, 2e-3, similarity.PUBLISHED_CUT, False),
        ("lsd_no_offset", similarity.log_spectral_distance, 2e-3, 0, False),
        ("lsd_swapped_no_offset", similarity.log_spectral_distance, 2e-3, 0, True),
        ("ssim_stft", similarity.ssim_of_waves, 1e-4, similarity.PUBLISHED_CUT, False),
        ("ssim_stft_no_offset", similarity.ssim_of_waves, 1e-4, 0, False),
    ],
)
def test_spectra(pairs, golden, parity, key, score, tolerance, cut, swapped):
    theirs = golden["audioldm_eval"]
    indices, wanted = finite(theirs["paired_per_clip"], key)
    assert set(range(24)) - set(indices) == {18}  # the silent clip
    assert np.isnan(score(*pairs[18], cut=cut))
    ours = [score(*(pairs[i][::-1] if swapped else pairs[i]), cut=cut) for i in indices]
    parity(f"{key}, clips", "audioldm_eval, ssr_eval", ours, wanted, tolerance)
    if key == "lsd":
        assert len(ours) == theirs["lsd_finite_clips"]
        parity("lsd, mean", "audioldm_eval", np.mean(ours), theirs["lsd_finite_mean"], tolerance)


def test_psnr_has_a_closed_form_and_cuts_to_the_shorter():
    picture = np.random.default_rng(0).random((8, 9)) * 0.5
    assert similarity.psnr(picture, picture) == np.inf
    assert similarity.psnr(picture, picture[:, :7] + 0.1) == pytest.approx(20.0)


def test_ssim_is_one_for_equal_pictures():
    picture = np.random.default_rng(1).random((8, 9))
    assert similarity.ssim(picture, picture) == pytest.approx(1.0)
    assert similarity.ssim(picture, picture[::-1]) < 0.9
    assert similarity.ssim(np.zeros((8, 9)), np.zeros((8, 8))) == 1.0
    with pytest.raises(ValueError, match="7 x 7"):
        similarity.ssim(picture[:6], picture[:6])


def test_lsd_ignores_level_and_offset():
    wave = np.random.default_rng(2).standard_normal(8_000)
    assert similarity.log_spectral_distance(wave, 0.3 * wave + 0.1) == pytest.approx(0, abs=1e-6)
    assert similarity.log_spectral_distance(wave, wave[::-1].copy()) > 0.5
