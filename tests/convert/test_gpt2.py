import json

import jax
import numpy as np
import pytest
import torch
import transformers

from convert.gpt2 import config, table, their_config
from convert.table import ConversionError
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.weights import abstract
from tests.exported import open_exported, random_network
from tests.table_checks import check_table

TINY = GPT2Config(width=12, depth=2, heads=3, positions=17, epsilon=1e-3)


@pytest.fixture
def released(reference):
    return json.loads((reference / "audioldm2/configs/language_model.json").read_text())


def test_table_fits_the_released_checkpoint(reference):
    manifest = json.loads((reference / "audioldm2/manifest_language_model.json").read_text())
    small = GPT2Config.small()
    network = abstract(lambda rngs: GPT2(small, rngs=rngs))
    others = ("h.0.attn.bias", "h.0.attn.masked_bias", "lm_head.weight")
    check_table(table(small), manifest, network, others=others)


def test_the_released_config(released):
    assert config(released) == GPT2Config.small()


def test_inner_width_may_be_stated(released):
    assert config(released | {"n_inner": 3072}) == GPT2Config.small()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gptj"}, "model_type must be gpt2, is gptj"),
        ({"activation_function": "relu"}, "activation_function must be gelu_new, is relu"),
        ({"n_inner": 1024}, "n_inner must be 3072, is 1024"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx must be Fa"),
        ({"add_cross_attention": True}, "add_cross_attention must be False, is True"),
        ({"n_head": 7}, "n_embd 768 is no multiple of n_head 7"),
        ({"n_layer": "12"}, "n_layer must be a positive integer, is 12"),
    ],
)
def test_refuses_what_the_network_does_not_have(released, change, message):
    with pytest.raises(ConversionError, match=message):
        config(released | change)


def test_reads_what_transformers_saves(tmp_path):
    sizes = {"n_embd": 12, "n_layer": 2, "n_head": 3, "n_positions": 17, "layer_norm_epsilon": 1e-3}
    transformers.GPT2Config(**sizes).save_pretrained(tmp_path)
    assert config(json.loads((tmp_path / "config.json").read_text())) == TINY


def test_a_mask_costs_no_more_than_the_file_holds():
    value = table(TINY).value
    np.testing.assert_array_equal(value("h.0.attn.bias", (1, 1, 3, 3))[0, 0], np.tri(3))
    for shape in ((), (10**9,), (1, 10**9), (1, 1, 1, 10**9), (10**9, 1, 1, 10**9)):
        assert value("h.0.attn.bias", shape).size == 1


def test_a_text_ends_where_the_word_table_has_an_end(released):
    known = [their_config(TINY, words)["eos_token_id"] for words in (1, 50256, 50257)]
    assert known == [None, None, 50256]


@pytest.mark.parity
@pytest.mark.parametrize("more", [{}, {"max_new_tokens": 8}], ids=["alone", "as AudioLDM 2 has it"])
def test_transformers_opens_an_export(tmp_path, parity, caplog, more):
    ours, weights = random_network(GPT2, TINY)
    exported = table(TINY).to_theirs(weights)
    described = their_config(TINY, 1) | more
    theirs = open_exported(transformers.GPT2Model, tmp_path / "gpt2", described, exported, caplog)
    embeds = np.random.default_rng(1).standard_normal((2, 11, 12), np.float32)
    with torch.no_grad():
        expected = theirs(inputs_embeds=torch.from_numpy(embeds)).last_hidden_state.numpy()
    result = jax.jit(GPT2.__call__)(ours, embeds)
    row = "GPT-2, exported folder" + (" of AudioLDM 2" if more else "")
    parity(row, "transformers GPT2Model", result, expected, 1e-4)
