"""The Q-Formers against transformers; the goldens are in test_timechat.py."""

from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers
from jax import numpy as jnp

from convert.table import Table
from convert.timechat import qformer_rows
from mfm_jax.models.qformer import QFormer, QFormerConfig
from mfm_jax.storage.weights import abstract, with_weights
from tests.bundles import filled, in_half
from tests.randomise import randomise

IMAGE = QFormerConfig(
    queries=5,
    width=24,
    context_width=28,
    depth=3,
    heads=3,
    mlp_width=40,
    cross_every=2,
    words=61,
    positions=17,
)
VIDEO = QFormerConfig(
    queries=7, width=18, context_width=26, depth=2, heads=6, mlp_width=44, cross_every=1
)


apply = jax.jit(lambda module, *inputs: module(*inputs))


def peer_sizes(config: QFormerConfig) -> dict:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "cross_attention_frequency": config.cross_every,
        "encoder_hidden_size": config.context_width,
    }


def ours_from(peer, config: QFormerConfig) -> tuple[QFormer, torch.Tensor]:
    """Our network with the weights of `peer`, and the query tokens, an input of theirs."""
    queries = torch.randn(
        1, config.queries, config.width, generator=torch.Generator().manual_seed(1)
    )
    text = config.words is not None
    state = {
        k.replace("embeddings.layernorm" if text else "layernorm", "embeddings.LayerNorm").replace(
            "attention.attention.", "attention.self."
        ): v.numpy()
        for k, v in peer.state_dict().items()
    }
    rows = Table(qformer_rows("query_tokens", "", "", text=text))
    weights = dict(rows.to_ours(state | {"query_tokens": queries.numpy()}))
    empty = abstract(lambda rngs: QFormer(config, rngs=rngs))
    return with_weights(empty, {k: jax.device_put(v) for k, v in weights.items()}), queries


def inputs(config: QFormerConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Context, ids and mask: three rows, with 9, 4 and 6 words that are not padding."""
    rng = np.random.default_rng(4)
    context = rng.standard_normal((3, 11, config.context_width), np.float32)
    ids = rng.integers(0, config.words or 1, (3, 9), np.int32)
    mask = np.arange(9)[None, :] < np.array([[9], [4], [6]])
    return jnp.asarray(context), jnp.asarray(ids), jnp.asarray(mask)


@pytest.mark.parity
def test_agrees_with_instructblip(parity):
    config = transformers.InstructBlipQFormerConfig(
        vocab_size=61, max_position_embeddings=17, **peer_sizes(IMAGE)
    )
    peer = randomise(transformers.InstructBlipQFormerModel(config).eval(), seed=0)
    ours, queries = ours_from(peer, IMAGE)
    context, ids, mask = inputs(IMAGE)
    rest = {
        "query_embeds": queries.expand(3, -1, -1),
        "encoder_hidden_states": torch.tensor(np.asarray(context)),
    }
    seen = np.concatenate([np.ones((3, 5), np.int64), np.asarray(mask)], axis=1)
    against = "transformers InstructBlipQFormerModel"
    with torch.no_grad():
        theirs = peer(torch.tensor(np.asarray(ids)), torch.tensor(seen), **rest)
        parity("Q-Former, padded text", against, apply(ours, context, ids, mask), theirs[0], 1e-4)
        theirs = peer(None, **rest)
        parity("Q-Former, text left out", against, apply(ours, context), theirs[0], 1e-4)


@pytest.mark.parity
def test_agrees_with_blip2(parity):
    config = transformers.Blip2QFormerConfig(use_qformer_text_input=False, **peer_sizes(VIDEO))
    peer = randomise(transformers.Blip2QFormerModel(config).eval(), seed=2)
    ours, queries = ours_from(peer, VIDEO)
    context, _, _ = inputs(VIDEO)
    with torch.no_grad():
        theirs = peer(
            queries.expand(3, -1, -1), encoder_hidden_states=torch.tensor(np.asarray(context))
        )
    parity(
        "Q-Former without text",
        "transformers Blip2QFormerModel",
        apply(ours, context),
        theirs[0],
        1e-4,
    )


def drawn(config) -> QFormer:
    return filled(abstract(partial(QFormer, config)), 0)


def test_padding_is_seen_by_nobody():
    """Other ids behind the mask change the padded positions and nothing else."""
    qformer = drawn(IMAGE)
    context, ids, mask = inputs(IMAGE)
    other = jnp.where(mask, ids, (ids + 1) % 61)
    one, two = (np.asarray(apply(qformer, context, x, mask)) for x in (ids, other))
    kept = np.concatenate([np.ones((3, IMAGE.queries), bool), mask], axis=1)
    np.testing.assert_array_equal(one[kept], two[kept])
    assert np.all(np.abs(one - two).max(axis=-1)[~kept] > 1e-3)


def test_text_hears_of_the_context_only_through_the_queries():
    """One block deep, the queries depend on the context and the text does not."""
    qformer = drawn(IMAGE)
    context, ids, mask = inputs(IMAGE)
    x, seen = qformer.embed(3, ids), qformer.visible(3, mask)
    block = jax.jit(lambda b, c: b(x, c, mask=seen))
    one, two = (np.asarray(block(qformer.blocks[0], c)) for c in (context, jnp.flip(context, 0)))
    assert np.abs(one - two)[:, : IMAGE.queries].max() > 1e-2
    np.testing.assert_array_equal(one[:, IMAGE.queries :], two[:, IMAGE.queries :])


def test_computes_in_the_precision_of_its_weights():
    qformer = in_half(drawn(IMAGE))
    with jax.numpy_dtype_promotion("standard"):  # flax's LayerNorm promotes bfloat16 by itself
        result = jax.eval_shape(apply, qformer, *inputs(IMAGE))
    assert (result.shape, result.dtype) == ((3, 14, 24), jnp.bfloat16)


def test_text_that_does_not_fit_is_refused():
    context, ids, mask = inputs(VIDEO)
    with pytest.raises(ValueError, match="reads no text"):
        drawn(VIDEO)(context, ids, mask)
    with pytest.raises(ValueError, match="at most 17"):
        drawn(IMAGE).embed(1, jnp.zeros((1, 18), jnp.int32))
