import json

import numpy as np
import pytest

from convert.table import ConversionError
from convert.vocoder import table, weight_norm_table
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.weights import abstract, count
from tests.table_checks import check_table


TABLE = table(VocoderConfig.audioldm2())
WEIGHT_NORM_TABLE = weight_norm_table(VocoderConfig.audioldm2())


@pytest.fixture
def manifest(reference):
    return json.loads((reference / "audioldm2" / "manifest_vocoder.json").read_text())


@pytest.fixture(scope="module")
def module():
    config = VocoderConfig.audioldm2()
    return abstract(lambda rngs: Vocoder(config, rngs=rngs))


def with_weight_norm(manifest):
    """The manifest of the same network before its weight norm was folded."""
    unfolded = {}
    for key, (shape, dtype) in manifest.items():
        if key.endswith(".weight"):
            unfolded[f"{key}_g"] = [[shape[0]] + [1] * (len(shape) - 1), dtype]
            unfolded[f"{key}_v"] = [shape, dtype]
        else:
            unfolded[key] = [shape, dtype]
    return unfolded


def test_table_fits_the_released_checkpoint(manifest, module):
    buffers = 2 * 64
    assert count(module) == 55_265_025 - buffers
    check_table(TABLE, manifest, module)


def test_tables_do_not_take_each_others_checkpoints(manifest):
    TABLE.check_keys(manifest)
    WEIGHT_NORM_TABLE.check_keys(with_weight_norm(manifest))
    with pytest.raises(ConversionError, match=r"unknown: conv_post\.weight_g"):
        TABLE.check_keys(with_weight_norm(manifest))
    with pytest.raises(ConversionError, match=r"unknown: conv_post\.weight"):
        WEIGHT_NORM_TABLE.check_keys(manifest)


def test_buffers_are_written_back_as_zero_and_one():
    back = dict(TABLE.computed(["conv_in.bias"]))
    np.testing.assert_array_equal(back["mean"], np.zeros(64, np.float32))
    np.testing.assert_array_equal(back["scale"], np.ones(64, np.float32))
