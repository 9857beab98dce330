import json

import jax
import numpy as np
import pytest
import torch
import transformers

from convert.t5 import TABLE, config, their_config
from convert.table import ConversionError
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.storage.weights import abstract, check_weights, named_weights
from tests.exported import open_exported, random_network
from tests.table_checks import check_table

COPY = "encoder.embed_tokens.weight"
TINY = T5Config(
    vocab=13,
    width=10,
    depth=2,
    heads=3,
    head_dim=4,
    mlp_width=14,
    buckets=12,
    max_distance=20,
    epsilon=1e-3,
)


@pytest.fixture(scope="module")
def large():
    config = T5Config.flan_t5_large()
    return abstract(lambda rngs: T5Encoder(config, rngs=rngs))


@pytest.fixture
def released(reference):
    return json.loads((reference / "audioldm2/configs/text_encoder_2.json").read_text())


@pytest.fixture
def manifest(reference):
    return json.loads((reference / "audioldm2" / "manifest_text_encoder_2.json").read_text())


def test_table_fits_the_released_checkpoint(large, manifest):
    others = ["decoder.block.0.layer.0.SelfAttention.q.weight", "lm_head.weight"]
    check_table(TABLE, manifest, large, others=others)


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


def test_the_released_config(released):
    assert config(released) == T5Config.flan_t5_large()


def test_a_file_older_than_the_distance_of_the_last_bucket(released):
    del released["relative_attention_max_distance"]
    assert config(released).max_distance == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "umt5"}, "model_type must be t5, is umt5"),
        ({"feed_forward_proj": "relu"}, "feed_forward_proj must be gated-gelu, is relu"),
        ({"dense_act_fn": "silu"}, "dense_act_fn must be gelu_new, is silu"),
        ({"is_decoder": True}, "is_decoder must be False, is True"),
        ({"num_heads": 0}, "num_heads must be a positive integer, is 0"),
        ({"layer_norm_epsilon": None}, "layer_norm_epsilon must be a positive number, is None"),
    ],
)
def test_refuses_what_the_network_does_not_have(released, change, message):
    with pytest.raises(ConversionError, match=message):
        config(released | change)


def test_refuses_the_first_t5(tmp_path):
    transformers.T5Config().save_pretrained(tmp_path)
    with pytest.raises(ConversionError, match="feed_forward_proj must be gated-gelu, is relu"):
        config(json.loads((tmp_path / "config.json").read_text()))


def test_reads_what_transformers_saves(tmp_path):
    model = transformers.T5EncoderModel(transformers.T5Config(**their_config(TINY)))
    model.config.save_pretrained(tmp_path)
    assert config(json.loads((tmp_path / "config.json").read_text())) == TINY


@pytest.mark.parity
def test_transformers_opens_an_export(tmp_path, parity, caplog):
    ours, weights = random_network(T5Encoder, TINY)
    theirs = open_exported(
        transformers.T5EncoderModel,
        tmp_path / "t5",
        their_config(TINY),
        TABLE.to_theirs(weights),
        caplog,
    )
    ids = np.random.default_rng(1).integers(0, 13, (2, 25))
    mask = np.arange(25) < np.array([[25], [18]])
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    result = jax.jit(T5Encoder.__call__)(ours, ids.astype(np.int32), mask)
    parity("T5 encoder, exported folder", "transformers T5EncoderModel", result, expected, 1e-4)
