"""Front ends against stored outputs of torchlibrosa, audioldm_eval and av-benchmark."""

import numpy as np
import pytest

from mfm_jax.metrics import spectra


@pytest.fixture(scope="module")
def golden(reference):
    return np.load(reference / "metrics/cnn14.npz")


@pytest.fixture(scope="module")
def pair(reference):
    clips = np.load(reference / "metrics/clips.npz")
    waves = {side: clips[side][0].astype(np.float32) / 32768 for side in ("ref", "gen")}
    return {side: wave - wave.mean() for side, wave in waves.items()}


@pytest.mark.parity
def test_mel_matrices(golden, parity):
    ours = spectra.mel_filters(64, 512, 50, 8000)
    parity("Cnn14 mel matrix", "golden cnn14_melW", ours.T, golden["cnn14_melW"], 1e-7)
    parity("audioldm_eval mel basis", "golden", ours, golden["tacotron_mel_basis"], 1e-7)


@pytest.mark.parity
def test_cnn14_log_mel(golden, pair, parity):
    ours = spectra.cnn14_log_mel(spectra.prepare_for_cnn14(pair["ref"]))
    parity("Cnn14 log-mel, dB", "golden logmel_db_ref_00", ours, golden["logmel_db_ref_00"], 2e-3)


@pytest.mark.parity
@pytest.mark.parametrize("side", ["ref", "gen"])
def test_unit_mel(golden, pair, parity, side):
    theirs = golden[f"specvqgan_mel_{side}_00"]
    parity("audioldm_eval mel", f"golden {side}", spectra.unit_mel(pair[side]), theirs, 2e-4)


@pytest.mark.parity
def test_vggish_examples(reference, pair, parity):
    theirs = np.load(reference / "metrics/vggish_front_end.npz")["examples_ref_00"]
    parity("VGGish front end", "golden", spectra.vggish_examples(pair["ref"]), theirs, 2e-3)


def test_prepare_for_cnn14_removes_the_mean_and_pads_to_two_seconds():
    wave = spectra.prepare_for_cnn14(np.linspace(0.0, 0.5, 24_000))
    assert wave.shape == (32_000,)
    assert abs(wave[:24_000].mean()) < 1e-6
    assert not wave[24_000:].any()
    assert spectra.prepare_for_cnn14(np.ones(40_000, np.float32)).shape == (40_000,)


@pytest.mark.parametrize(("samples", "examples"), [(399, 0), (15_599, 0), (15_600, 1), (32_000, 2)])
def test_vggish_needs_975_ms(samples, examples):
    assert spectra.vggish_examples(np.zeros(samples, np.float32)).shape == (examples, 96, 64)


@pytest.mark.parametrize("samples", [0, 256])
def test_too_short_is_one_clear_line(samples):
    with pytest.raises(ValueError, match=f"{samples} samples are too few"):
        spectra.cnn14_log_mel(np.zeros(samples, np.float32))


def test_silence_is_the_floor():
    assert np.all(spectra.cnn14_log_mel(np.zeros(8_000, np.float32)) == -100.0)
    assert np.all(spectra.unit_mel(np.zeros(8_000, np.float32)) == 0.0)
