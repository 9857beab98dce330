import json

import jax
import numpy as np
import pytest
import torch
import transformers

from convert.table import ConversionError
from convert.vocoder import config, table, their_config
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.weights import abstract, parameter_count
from tests.exported import open_exported, random_network
from tests.table_checks import check_table

TABLE = table(VocoderConfig.audioldm2())

TINY = VocoderConfig(
    channels=12,
    mels=5,
    rates=(3, 2),
    kernels=(7, 4),
    block_kernels=(3, 7),
    dilations=((1, 3), (1, 5)),
)


@pytest.fixture
def released(reference):
    return json.loads((reference / "audioldm2/configs/vocoder.json").read_text())


@pytest.fixture
def manifest(reference):
    return json.loads((reference / "audioldm2" / "manifest_vocoder.json").read_text())


@pytest.fixture(scope="module")
def module():
    ours = VocoderConfig.audioldm2()
    return abstract(lambda rngs: Vocoder(ours, rngs=rngs))


def test_table_fits_the_released_checkpoint(manifest, module):
    buffers = 2 * 64
    assert parameter_count(module) == 55_265_025 - buffers
    check_table(TABLE, manifest, module)


def test_buffers_are_written_back_as_zero_and_one():
    back = dict(TABLE.computed(["conv_in.bias"]))
    np.testing.assert_array_equal(back["mean"], np.zeros(64, np.float32))
    np.testing.assert_array_equal(back["scale"], np.ones(64, np.float32))


def test_the_released_config(released):
    assert config(released) == VocoderConfig.audioldm2()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalize_before": True}, "normalize_before must be False, is True"),
        ({"leaky_relu_slope": 0.2}, "leaky_relu_slope must be 0.1, is 0.2"),
        ({"sampling_rate": 48000}, "sampling_rate must be 16000, is 48000"),
        ({"upsample_kernel_sizes": [16, 16]}, "upsample_kernel_sizes must have 5 entries, is "),
        ({"resblock_dilation_sizes": [[1]]}, "resblock_dilation_sizes must have 3 entries, is "),
        ({"resblock_dilation_sizes": [1, 3, 5]}, "resblock_dilation_sizes must be a list of "),
    ],
)
def test_refuses_what_the_network_does_not_have(released, change, message):
    with pytest.raises(ConversionError, match=message):
        config(released | change)


def test_refuses_the_librarys_default(tmp_path):
    """The default normalises the mel, with tensors that we do not read."""
    transformers.SpeechT5HifiGanConfig().save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="normalize_before must be False, is True"):
        config(json.loads((tmp_path / "config.json").read_text()))


@pytest.mark.parity
def test_transformers_opens_an_export(tmp_path, parity, caplog):
    ours, weights = random_network(Vocoder, TINY)
    theirs = open_exported(
        transformers.SpeechT5HifiGan,
        tmp_path / "vocoder",
        their_config(TINY),
        table(TINY).to_theirs(weights),
        caplog,
    )
    theirs.config.save_pretrained(tmp_path / "again")
    assert config(json.loads((tmp_path / "again/config.json").read_text())) == TINY
    mel = np.random.default_rng(1).standard_normal((2, 9, 5), np.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(mel)).numpy()
    assert 0.1 < expected.std() < 0.9
    result = jax.jit(Vocoder.__call__)(ours, mel)
    parity("vocoder, exported folder", "transformers SpeechT5HifiGan", result, expected, 1e-4)
