"""Prompts: T5 is opened once, compiled once, and padding changes nothing."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.bundle import BundleError, Component, write_bundle
from mfm_jax.errors import UsageError
from mfm_jax.inference import prompts
from mfm_jax.inference.prompts import LENGTH, PromptEncoder, Prompts, encode_tokens
from mfm_jax.inference.requests import Request
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.models.unet import UNetConfig
from mfm_jax.storage.weights import abstract
from tests.bundles import filled, untrained_bundle, untrained_component


def tokenise(
    text: str, *, truncation: bool = False, max_length: int = 0, verbose: bool = True
) -> SimpleNamespace:
    """Bytes as tokens, as T5's tokenizer gives them."""
    return SimpleNamespace(input_ids=[*text.encode()[: max_length - 1 if truncation else None], 1])


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(
        filled(abstract(lambda rngs: T5Encoder(T5Config.tiny(), rngs=rngs)), 0), tokenise
    )


def test_padding_changes_no_state_of_the_text(encoder):
    text = encoder("a drum")
    assert text.states.shape == (1, LENGTH, T5Config.tiny().width)
    np.testing.assert_array_equal(text.mask[0], np.arange(LENGTH) < 7)
    ids = jnp.asarray([tokenise("a drum", truncation=True, max_length=LENGTH).input_ids])
    alone = encoder.t5(ids, jnp.ones(ids.shape, bool))
    np.testing.assert_allclose(text.states[:, :7], alone, atol=1e-5)


def test_a_second_prompt_of_another_length_compiles_nothing(encoder):
    encoder("rain")
    compiled = encode_tokens._cache_size()
    assert encoder("a dog barks at a passing car").mask.sum() == 29
    assert encoder("x" * (LENGTH - 1)).mask.all()
    assert encode_tokens._cache_size() == compiled


def test_a_prompt_that_is_cut_says_so(encoder):
    told = []
    cut = encoder("x" * 500, told.append)
    assert told == ["a prompt of 501 tokens is cut: its last 373 are left out, as 128 are read"]
    np.testing.assert_array_equal(cut.states, encoder("x" * (LENGTH - 1)).states)
    with pytest.warns(UserWarning, match="is cut"):
        encoder("x" * LENGTH)


def test_every_prompt_is_encoded_once_and_no_prompt_needs_no_t5(encoder, tmp_path, monkeypatch):
    bundle = untrained_bundle(tmp_path / "b")
    opened, encoded = [], []

    def count(text, say):
        encoded.append(text)
        return encoder(text, say)

    monkeypatch.setattr(prompts.PromptEncoder, "open", lambda *given: opened.append(given) or count)
    assert Prompts.encoded([Request(tmp_path)], bundle).texts([None]) == [None]
    assert not opened
    asked = [
        Request(tmp_path, prompt="a drum", negative_prompt="rain"),
        Request(tmp_path, prompt="rain", seed=1),
    ]
    found = Prompts.encoded(asked, bundle).texts(["rain", None, "a drum"])
    assert (len(opened), encoded) == (1, ["a drum", "rain"])
    assert found[1] is None
    for text, prompt in ((found[0], "rain"), (found[2], "a drum")):
        whole = encoder(prompt)
        np.testing.assert_array_equal(text.mask, whole.mask)
        read = np.where(whole.mask[..., None], whole.states, 0)
        np.testing.assert_array_equal(text.states, read)


def test_a_tokenizer_that_would_run_code_is_refused(tmp_path):
    """Nothing is run, and nobody is asked whether to."""
    config = replace(UNetConfig.tiny(), attentions=((), (0, 1), (0, 1)), contexts=(128, 64))

    def add_files(folder):
        (folder / "tokenizer").mkdir()
        names = {"AutoTokenizer": ["tokenization_mine.Mine", None]}
        told = {"tokenizer_class": "Mine", "auto_map": names}
        (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(told))
        (folder / "tokenizer" / "tokenization_mine.py").write_text(
            f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n"
        )

    parts = {
        n: untrained_component(n, c, 0) for n, c in (("unet", config), ("t5", T5Config.tiny()))
    }
    parts["t5"] = Component(*parts["t5"], add_files)
    bundle = write_bundle(tmp_path / "b", parts)
    with pytest.raises(UsageError, match=r"the tokenizer of t5 .* cannot be opened") as caught:
        prompts.PromptEncoder.open(bundle)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    (file,) = (tmp_path / "b").glob("t5-*/tokenizer/tokenizer_config.json")
    file.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer_config\.json was changed"):
        prompts.PromptEncoder.open(bundle)


def test_a_bundle_without_text_says_so(tmp_path):
    with pytest.raises(UsageError, match="has no text encoder: leave the prompts out"):
        prompts.PromptEncoder.open(untrained_bundle(tmp_path / "b"))


def test_a_prompt_that_is_no_text_is_one_line(tmp_path):
    bundle = untrained_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        Prompts.encoded([Request(tmp_path, prompt="caf\udce9")], bundle)
