import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from convert.__main__ import main
from convert.cnn14 import MEL, TABLE, dft, mel_matrix
from convert.model import OURS
from mfm_jax.bundle import Bundle
from mfm_jax.media.audio import RATE, mel_filters
from mfm_jax.metrics.spectra import cnn14_log_mel
from mfm_jax.models.cnn14 import Cnn14Config, Cnn14Tagger
from mfm_jax.runtime.config import to_json
from mfm_jax.storage.weights import abstract, named_weights
from tests.table_checks import check_table

SMALL = replace(Cnn14Config.panns(), widths=(2, 2, 2, 2, 2, 3))


def test_table(reference):
    manifest = json.loads((reference / "metrics/manifest.json").read_text())
    net = abstract(lambda rngs: Cnn14Tagger(Cnn14Config.panns(), rngs=rngs))
    check_table(TABLE, manifest, net)


def front_end(window: int, rate: int, fmax: float, fmin: float = 50) -> dict[str, np.ndarray]:
    """Return the tensors of PANNs' front end (torchlibrosa) of some settings."""
    steps = np.exp(-2j * np.pi * np.outer(np.arange(window // 2 + 1), np.arange(window)) / window)
    waves = (steps * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)))[:, None]
    return {
        "spectrogram_extractor.stft.conv_real.weight": waves.real,
        "spectrogram_extractor.stft.conv_imag.weight": waves.imag,
        MEL: mel_filters(mels=64, n_fft=window, fmin=fmin, fmax=fmax, rate=rate).T,
    }


@pytest.fixture
def saved(tmp_path):
    """`saved(front end)` writes a small network with it, and returns the command to convert it."""
    shapes = named_weights(abstract(lambda rngs: Cnn14Tagger(SMALL, rngs=rngs)))
    ours = {name: np.ones(leaf.shape, np.float32) for name, leaf in shapes.items()}
    state = {key: torch.tensor(array) for key, array in TABLE.to_theirs(ours)}

    def write(tensors: dict[str, np.ndarray], *, sizes: bool = True) -> list[str]:
        extra = {k: torch.tensor(a, dtype=torch.float32) for k, a in tensors.items()}
        torch.save({"model": state | extra}, tmp_path / "x.pth")
        (tmp_path / "config.json").write_text(json.dumps({OURS: to_json(SMALL)}))
        told = ["--config", str(tmp_path / "config.json")] if sizes else []
        return ["cnn14", str(tmp_path / "x.pth"), "-o", str(tmp_path / "b"), *told]

    return write


def test_the_front_end_is_the_one_that_metrics_compute(reference):
    golden = np.load(reference / "metrics/cnn14.npz")
    np.testing.assert_allclose(mel_matrix(MEL, ()), golden["cnn14_melW"], atol=1e-7)
    wave = np.random.default_rng(0).standard_normal(RATE) * 0.1
    padded = np.pad(wave, 256, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::160]
    parts = (frames @ dft(name, ())[:, 0].T for name in ("conv_real", "conv_imag"))
    power = sum(part**2 for part in parts) @ mel_matrix(MEL, ())
    expected = 10 * np.log10(np.maximum(power, 1e-10))
    np.testing.assert_allclose(cnn14_log_mel(wave), expected, atol=1e-6)


def test_the_network_of_16_khz_is_read(saved, tmp_path):
    assert main(saved(front_end(512, 16_000, 8000))) == 0
    assert Bundle.open(tmp_path / "b").damages("cnn14") == []


@pytest.mark.parametrize(
    "other",
    [
        front_end(1024, 32_000, 14_000),
        front_end(256, 8000, 4000),
        front_end(512, 16_000, 7600),
        front_end(512, 16_000, 8000, fmin=20),
        front_end(512, 16_000, 8000) | {MEL: front_end(1024, 32_000, 14_000)[MEL]},
    ],
    ids=["32 kHz", "8 kHz", "another upper end", "another lower end", "mixed"],
)
def test_networks_of_other_front_ends_are_refused(saved, tmp_path, capsys, other):
    assert main(saved(other)) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "this is another network" in printed
    assert MEL in printed
    assert not (tmp_path / "b").exists()


def test_a_file_that_does_not_say_its_front_end_is_refused(saved, capsys):
    """An export from here without it, which has our config.json, is read."""
    assert main(saved({}, sizes=False)) == 2
    assert f"without {MEL} nothing tells the sampling rate" in capsys.readouterr().err
    assert main(saved({})) == 0
