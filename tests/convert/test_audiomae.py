import json

import pytest

from convert.audiomae import table
from convert.table import ConversionError
from mfm_jax.models.audiomae import AudioMAE, AudioMAEConfig
from mfm_jax.storage.weights import abstract
from tests.table_checks import check_table


def test_table_fits_the_released_checkpoint(reference):
    config = AudioMAEConfig.base()
    manifest = json.loads((reference / "audiomae" / "manifest.json").read_text())
    check_table(table(config), manifest, abstract(lambda rngs: AudioMAE(config, rngs=rngs)))


def test_table_reads_files_with_a_windowed_decoder_or_none(reference):
    manifest = json.loads((reference / "audiomae" / "manifest.json").read_text())
    encoder = {k for k in manifest if not k.startswith(("decoder_", "mask_token"))}
    assert len(encoder) == 150
    check_keys = table(AudioMAEConfig.base()).check_keys
    check_keys(encoder)
    check_keys(encoder | {"mask_token", "decoder_blocks.0.attn.relative_position_bias_table"})


def test_table_refuses_the_fine_tuned_classifier(reference):
    manifest = json.loads((reference / "audiomae" / "manifest.json").read_text())
    with pytest.raises(ConversionError, match=r"unknown: head\.weight"):
        table(AudioMAEConfig.base()).check_keys([*manifest, "head.weight"])
