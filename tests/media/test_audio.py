"""Spectrograms against the original front ends, and waves against their files."""

import jax
import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from jax import numpy as jnp

from mfm_jax.errors import WriteError
from mfm_jax.media import audio


def wave_of(samples: int, seed: int = 0) -> np.ndarray:
    """Return noise with a changing level: loud and near-silent parts."""
    noise = np.random.default_rng(seed).standard_normal(samples)
    level = 0.3 * np.abs(np.sin(np.arange(samples) / 5000)) ** 3
    return (noise * level).astype(np.float32)


@pytest.mark.parity
def test_mel_filters(reference, parity):
    metrics = np.load(reference / "metrics" / "cnn14.npz")
    cavp = np.load(reference / "cavp" / "golden" / "mel.npz")["mel_basis"]
    cnn14 = audio.mel_filters(64, 512, 50, 8000)
    parity(
        "mel filters 64 of 512", "metrics golden cnn14_melW", cnn14.T, metrics["cnn14_melW"], 1e-8
    )
    tacotron = metrics["tacotron_mel_basis"]
    parity("mel filters 64 of 512", "metrics golden tacotron_mel_basis", cnn14, tacotron, 1e-8)
    ours = audio.mel_filters(128, 1024, 125, 7600)
    parity("mel filters 128 of 1024", "CAVP golden mel_basis", ours, cavp, 1e-8)


@pytest.mark.parity
def test_audioldm2_filters_against_transformers(parity):
    from transformers.audio_utils import mel_filter_bank

    theirs = mel_filter_bank(513, 64, 0, 8000, 16_000, norm="slaney", mel_scale="slaney")
    parity(
        "mel filters 64 of 1024",
        "transformers",
        audio.mel_filters(64, 1024, 0, 8000),
        theirs.T,
        1e-8,
    )


def test_filters_are_shared_and_cannot_be_changed():
    bank = audio.mel_filters(64, 1024, 0, 8000)
    assert bank is audio.mel_filters(64, 1024, 0, 8000)
    with pytest.raises(ValueError, match="read-only"):
        bank[0] = 0


@pytest.mark.parity
@pytest.mark.parametrize("hop", [250, 256])
def test_cavp_mel(reference, parity, hop):
    golden = np.load(reference / "cavp" / "golden" / "mel.npz")
    ours = audio.cavp_mel(golden["wave_16k"], hop)
    assert ours.dtype == np.float32
    parity(f"CAVP mel hop {hop}", f"golden mel_hop{hop}", ours, golden[f"mel_hop{hop}"], 1e-5)


def test_cavp_mel_has_sixteen_columns_a_video_frame():
    assert audio.cavp_mel(wave_of(4 * audio.RATE)).shape == (128, 16 * 16)
    assert audio.cavp_mel(wave_of(10 * audio.RATE)).shape == (128, 640)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("clip", "rows"), [(0, slice(None)), (1, slice(320)), (2, slice(-64, None))]
)
def test_fbank(reference, parity, clip, rows):
    golden = np.load(reference / "audiomae" / "golden" / "fbank.npz")
    ours = audio.kaldi_fbank(golden[f"wave{clip}_int16"] / np.float32(32_768))
    assert ours.shape == (1024, 128)
    assert ours.dtype == np.float32
    parity("Kaldi fbank", f"golden fbank{clip}", ours[rows], golden[f"fbank{clip}"], 2e-3)
    assert np.abs(ours[rows] - golden[f"fbank{clip}"]).mean() < 1e-4 / audio.FBANK_SPREAD


@pytest.mark.parity
def test_fbank_of_the_full_size_run(reference, parity):
    golden = np.load(reference / "audiomae" / "golden" / "full.npz")
    ours = audio.kaldi_fbank(golden["wave_int16"] / np.float32(32_768))
    parity("Kaldi fbank", "golden full fbank", ours[None], golden["fbank"], 2e-3)


@pytest.mark.parity
def test_raw_fbank(reference, parity):
    golden = np.load(reference / "audiomae" / "golden" / "fbank.npz")
    wave = golden["wave1_int16"] / np.float32(32_768)
    raw = audio.kaldi_fbank(wave, 298) * audio.FBANK_SPREAD + audio.FBANK_MEAN
    parity("Kaldi fbank raw", "golden fbank_raw1", raw, golden["fbank_raw1"], 2e-2)
    # In float64 on both sides only the rest of the arithmetic is left.
    exact = golden["fbank_raw1_computed_in_float64"]
    parity("Kaldi fbank raw", "golden fbank_raw1_computed_in_float64", raw, exact, 5e-4)


@pytest.mark.parity
def test_kaldi_filters(reference, parity):
    # The golden has mel values up to 2840 in float32 (steps of 2.4e-4) over a width of 22 mel.
    theirs = np.load(reference / "audiomae" / "golden" / "fbank.npz")["mel_bank_128x256"]
    ours = audio.kaldi_mel_filters()
    parity("Kaldi mel filters", "golden mel_bank_128x256", ours, theirs, 3e-5)
    assert np.flatnonzero(ours.sum(axis=1) == 0).tolist() == [3]


def test_fbank_pads_with_normalised_zeros():
    tiny = audio.kaldi_fbank(wave_of(40_960), 256)
    assert tiny.shape == (256, 128)
    np.testing.assert_allclose(tiny[254:], 0.46703237, atol=1e-6)
    assert tiny[:254].min() == pytest.approx(-1.27759, abs=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize("samples", [16_000, 40_960, 33_333])
def test_log_mel_against_torch(parity, samples):
    import torch

    wave = wave_of(samples)
    padded = torch.nn.functional.pad(torch.from_numpy(wave)[None], (432, 432), mode="reflect")[0]
    spectrum = torch.stft(
        padded, 1024, 160, window=torch.hann_window(1024), center=False, return_complex=True
    )
    bank = torch.from_numpy(audio.mel_filters(64, 1024, 0, 8000).astype(np.float32))
    theirs = torch.log(torch.clamp(bank @ spectrum.abs(), min=1e-5)).T.numpy()
    ours = audio.log_mel(wave)
    assert ours.shape == (samples // 160, 64)
    assert ours.dtype == np.float32
    parity(f"log-mel {samples} samples", "torch.stft", ours, theirs, 1e-4)


def test_log_mel_is_the_same_compiled():
    wave = wave_of(40_960)
    compiled = jax.jit(audio.log_mel)(jnp.asarray(wave))
    assert isinstance(compiled, jax.Array)
    np.testing.assert_allclose(compiled, audio.log_mel(wave), atol=2e-4)


@pytest.mark.parametrize("level", [0.0, 0.3])
def test_log_mel_has_a_gradient_at_sound_and_at_silence(level):
    wave = jnp.asarray(wave_of(3200)) * level
    gradient = jax.grad(lambda w: audio.log_mel(w).sum())(wave)
    assert np.all(np.isfinite(gradient))
    assert bool(jnp.any(gradient != 0)) == (level > 0)


@pytest.mark.parametrize("hz", [400.0, 3000.0])
def test_log_mel_finds_a_sine_in_the_right_band(hz):
    wave = 0.5 * np.sin(2 * np.pi * hz * np.arange(8000) / audio.RATE).astype(np.float32)
    frequencies = np.fft.rfftfreq(1024, 1 / audio.RATE)
    bank = audio.mel_filters(64, 1024, 0, 8000)
    centre = (bank @ frequencies) / bank.sum(axis=1)
    assert centre[audio.log_mel(wave)[20].argmax()] == pytest.approx(hz, rel=0.05)


@given(st.integers(100, 3000), st.floats(-0.3, 0.3), st.floats(1e-2, 3))
def test_prepare_for_audiomae(samples, offset, level):
    noise = np.random.default_rng(0).uniform(-level, level, samples)
    ready = audio.prepare_for_audiomae((noise + offset).astype(np.float32), 1500)
    assert ready.shape == (1500,)
    assert ready.dtype == np.float32
    assert not ready[samples:].any()
    assert np.abs(ready).max() == pytest.approx(0.5, rel=1e-4)
    assert abs(ready[:samples].mean()) < 1e-4


def test_silence_stays_silence():
    assert not audio.prepare_for_audiomae(np.zeros(1000, np.float32), 1500).any()


def test_wav_is_read_back(tmp_path):
    wave = np.concatenate([wave_of(5000), np.float32([2, -2])])
    audio.write_sound(tmp_path / "a.wav", wave)
    back, rate = soundfile.read(tmp_path / "a.wav", dtype="float32")
    assert rate == audio.RATE
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    np.testing.assert_allclose(back, np.clip(wave, -1, 1), atol=1 / 32_767)
    assert [p.name for p in tmp_path.iterdir()] == ["a.wav"]


def test_an_unwritable_wav_is_one_clear_line(tmp_path):
    with pytest.raises(WriteError, match=r"^cannot write .*missing/a\.wav \(.*\): choose"):
        audio.write_sound(tmp_path / "missing" / "a.wav", np.zeros(10, np.float32))
