import json

import numpy as np
import pytest

from convert.t5 import TABLE
from convert.table import ConversionError
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.weights import abstract, check_weights, named_weights
from tests.table_checks import check_table

COPY = "encoder.embed_tokens.weight"


@pytest.fixture(scope="module")
def large():
    config = T5Config.flan_t5_large()
    return abstract(lambda rngs: T5Encoder(config, rngs=rngs))


@pytest.fixture
def manifest(reference):
    return json.loads((reference / "audioldm2" / "manifest_text_encoder_2.json").read_text())


def test_table_fits_the_released_checkpoint(large, manifest):
    check_table(TABLE, manifest, large)


def test_table_reads_a_file_without_the_tied_copy_and_writes_it(large, manifest):
    theirs = {
        key: np.broadcast_to(np.float32(number), shape)
        for number, (key, (shape, _)) in enumerate(manifest.items())
        if key != COPY
    }
    ours = dict(TABLE.to_ours(theirs))
    check_weights(named_weights(large), {n: a.shape for n, a in ours.items()}, where="T5")
    back = dict(TABLE.to_theirs(ours))
    assert back.keys() == manifest.keys()
    np.testing.assert_array_equal(back[COPY], theirs["shared.weight"])


def test_a_copy_that_differs_is_an_error(manifest):
    theirs = {k: np.broadcast_to(np.float32(0), shape) for k, (shape, _) in manifest.items()}
    theirs[COPY] = theirs[COPY] + np.float32(1)
    with pytest.raises(ConversionError, match="should repeat"):
        list(TABLE.to_ours(theirs))
