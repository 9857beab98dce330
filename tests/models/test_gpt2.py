"""GPT-2 against transformers, and its cache against plain recomputation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from convert.gpt2 import table
from mfm_jax.cost import flops
from mfm_jax.layers.remat import POLICIES, rematerialise
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.weights import abstract, with_weights
from tests.bundles import filled
from tests.randomise import randomise

SIZES = GPT2Config(width=24, depth=2, heads=3, positions=17)


@pytest.fixture(scope="module")
def theirs():
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=17, n_embd=24, n_layer=2, n_head=3, attn_implementation="eager"
    )
    return randomise(transformers.GPT2Model(config).eval(), seed=0)


@pytest.fixture(scope="module")
def ours(theirs) -> GPT2:
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    weights = {name: jax.device_put(array) for name, array in table(SIZES).to_ours(state)}
    return with_weights(abstract(lambda rngs: GPT2(SIZES, rngs=rngs)), weights)


@pytest.mark.parity
def test_hidden_states_equal_transformers(theirs, ours, parity):
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((2, 13, 24), np.float32)
    mask = np.ones((2, 13), bool)
    mask[1, 4:7] = False
    for name, m in (("", None), (", padded", mask)):
        with torch.no_grad():
            expected = theirs(
                inputs_embeds=torch.tensor(embeds),
                attention_mask=None if m is None else torch.tensor(m),
            ).last_hidden_state.numpy()
        result = jax.jit(ours)(jnp.asarray(embeds), None if m is None else jnp.asarray(m))
        parity(f"GPT-2{name}", "transformers GPT2Model", result, expected, 1e-4)


def test_reading_in_pieces_through_the_cache_changes_nothing(ours):
    embeds = jax.random.normal(jax.random.key(0), (2, 13, 24))
    mask = jnp.ones((2, 13), bool).at[0, 2].set(False)

    @jax.jit
    def in_pieces(gpt2, embeds, mask):
        hidden, prefix = gpt2.prefill(embeds[:, :5], mask[:, :5])
        caches, pieces = gpt2.empty_cache(2, 8), [hidden]
        for start, stop in ((5, 6), (6, 13)):
            hidden, caches = gpt2.extend(embeds[:, start:stop], prefix, caches, mask[:, :5])
            pieces.append(hidden)
        return jnp.concatenate(pieces, 1)

    whole = jax.jit(ours)(embeds, mask)
    np.testing.assert_allclose(in_pieces(ours, embeds, mask), whole, atol=2e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_last_positions_alone_are_the_same_for_less(ours, policy):
    embeds = jax.random.normal(jax.random.key(3), (2, 13, 24))
    mask = jnp.ones((2, 13), bool).at[0, 2].set(False)

    def value(gpt2, embeds, last):
        hidden = gpt2(embeds, mask, last=last)[:, -4:]
        return (hidden * jnp.linspace(0.0, 1.0, 24)[None, None]).sum(), hidden

    gradients = jax.jit(jax.grad(value, argnums=(0, 1), has_aux=True), static_argnums=2)
    with rematerialise(policy):
        whole, last = (jax.tree.leaves(gradients(ours, embeds, last)) for last in (None, 4))
    for one, other in zip(last, whole, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    # Queries, what comes of them and the MLP of nine positions of one block.
    saved = 2 * 2 * 9 * (10 * 24 * 24 + 2 * 13 * 24)
    less, more = (flops.count_flops(partial(ours, last=last), embeds) for last in (4, None))
    assert more - less == saved


def test_no_gradient_comes_from_the_future(ours):
    embeds = jax.random.normal(jax.random.key(1), (1, 9, 24))
    gradient = jax.jit(jax.grad(lambda x, p: ours(x)[0, p].sum()))
    for position in (0, 4, 8):
        grad = np.asarray(gradient(embeds, position))
        assert np.all(grad[0, position + 1 :] == 0)
        assert np.all(np.abs(grad[0, : position + 1]).max(-1) > 0)


def test_a_masked_token_changes_no_other(ours):
    embeds = np.random.default_rng(2).standard_normal((1, 9, 24), np.float32)
    other, keep, read = embeds.copy(), np.arange(9) != 3, jax.jit(GPT2.__call__)
    other[0, 3] += 5.0
    made, changed = (np.asarray(read(ours, x, keep[None])) for x in (embeds, other))
    np.testing.assert_array_equal(made[:, keep], changed[:, keep])


def test_too_long_a_sequence_is_refused():
    model = filled(abstract(partial(GPT2, SIZES)), 0)
    with pytest.raises(ValueError, match="18 tokens does not fit this GPT-2, which has 17"):
        model(jnp.zeros((1, 18, 24)))
