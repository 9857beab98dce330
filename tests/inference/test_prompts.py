"""Prompts: T5 is opened once, compiled once, and padding changes nothing."""

from types import SimpleNamespace

import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.errors import UsageError
from mfm_jax.inference import jobs, prompts
from mfm_jax.inference.prompts import LENGTH, PromptEncoder, encode_tokens
from mfm_jax.models.t5 import T5Config, T5Encoder
from mfm_jax.storage.weights import abstract
from tests.bundles import filled, untrained_bundle


def tokenise(text: str, *, truncation: bool, max_length: int) -> SimpleNamespace:
    """Bytes as tokens, as T5's tokenizer gives them."""
    assert truncation
    return SimpleNamespace(input_ids=[*text.encode()[: max_length - 1], 1])


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
    assert encoder("x" * 500).mask.all()
    assert encode_tokens._cache_size() == compiled


def test_both_prompts_share_one_t5_and_no_prompt_needs_none(encoder, tmp_path, monkeypatch):
    bundle = untrained_bundle(tmp_path / "b")
    opened = []
    monkeypatch.setattr(jobs.PromptEncoder, "open", lambda *given: opened.append(given) or encoder)
    assert jobs._encode(bundle, "float32", None, None) == (None, None)
    assert not opened
    prompt, negative = jobs._encode(bundle, "float32", "a drum", "rain")
    assert len(opened) == 1
    assert prompt is not None
    assert negative is not None
    assert jobs._encode(bundle, "float32", None, "rain")[0] is None


def test_a_bundle_without_text_says_so(tmp_path):
    with pytest.raises(UsageError, match="has no text encoder: leave the prompts out"):
        prompts.PromptEncoder.open(untrained_bundle(tmp_path / "b"))
