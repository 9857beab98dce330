from functools import partial

import jax
import numpy as np
import pytest
import torch
import transformers
from jax import numpy as jnp

from convert.t5 import TABLE
from mfm_jax.models.t5 import T5Config, T5Encoder, relative_buckets
from mfm_jax.storage.weights import abstract, parameter_count, with_weights
from tests.bundles import filled, in_half

# No two sizes are equal, and heads x head_dim is not the width.
SIZES = T5Config(
    vocab=61, width=24, depth=4, heads=3, head_dim=10, mlp_width=52, buckets=12, max_distance=20
)


def _theirs(config: T5Config) -> torch.nn.Module:
    model = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=config.vocab,
            d_model=config.width,
            d_kv=config.head_dim,
            d_ff=config.mlp_width,
            num_layers=config.depth,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            layer_norm_epsilon=config.epsilon,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
        )
    ).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.ndim == 1:
                p.copy_(1 + 0.3 * noise)
            elif "relative" in name or "shared" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / p.shape[1] ** 0.5)
    return model


def _ours(config: T5Config, theirs: torch.nn.Module) -> T5Encoder:
    state = {k: v.numpy() for k, v in theirs.state_dict().items()}
    network = abstract(lambda rngs: T5Encoder(config, rngs=rngs))
    return with_weights(network, {n: jax.device_put(a) for n, a in TABLE.to_ours(state)})


def _padded(batch: int, length: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(5).integers(2, vocab, (batch, length))
    lengths = np.linspace(length, 2, batch).astype(int)
    mask = np.arange(length)[None] < lengths[:, None]
    return np.where(mask, ids, 0), mask


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "config", "length"),
    [
        ("T5 encoder, padded rows", SIZES, 17),
        ("T5 encoder, beyond the last bucket", SIZES, 75),
        ("T5 encoder, 32 buckets", T5Config.tiny(), 150),
    ],
)
def test_encoder_agrees_with_transformers(parity, name, config, length):
    theirs = _theirs(config)
    ids, mask = _padded(3, length, config.vocab)
    with torch.no_grad():
        states = theirs(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state.numpy()
    ours = jax.jit(lambda net, i, m: net(i, m))(_ours(config, theirs), ids, mask)
    parity(name, "transformers T5EncoderModel", ours, states, 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(("epsilon", "size"), [(1e-6, 1e-3), (1e-2, 1.0)])
def test_encoder_agrees_on_states_near_epsilon(parity, epsilon, size):
    sizes = {"vocab": 61, "width": 24, "depth": 2, "heads": 3, "head_dim": 10, "mlp_width": 52}
    config = T5Config(**sizes, epsilon=epsilon)
    theirs = _theirs(config)
    with torch.no_grad():
        theirs.shared.weight.mul_(size)
    ids, mask = _padded(2, 9, config.vocab)
    with torch.no_grad():
        states = theirs(
            input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask).long()
        ).last_hidden_state.numpy()
    ours = jax.jit(lambda net, i, m: net(i, m))(_ours(config, theirs), ids, mask)
    parity(f"T5 encoder, epsilon {epsilon}", "transformers T5EncoderModel", ours, states, 1e-4)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("length", "buckets", "max_distance"),
    [(1500, 32, 128), (400, 32, 256), (300, 12, 20), (300, 20, 90)],
)
def test_buckets_agree_with_transformers(parity, length, buckets, max_distance):
    ours = relative_buckets(length, buckets, max_distance)
    position = torch.arange(length)
    theirs = transformers.models.t5.modeling_t5.T5Attention._relative_position_bucket(
        position[None, :] - position[:, None],
        bidirectional=True,
        num_buckets=buckets,
        max_distance=max_distance,
    ).numpy()
    name = f"T5 buckets, {buckets} up to {max_distance}"
    parity(name, "transformers T5Attention", ours, theirs, 0)
    assert set(np.unique(ours)) == set(range(buckets)) - {buckets // 2}


@pytest.fixture(scope="module")
def tiny() -> T5Encoder:
    return filled(abstract(partial(T5Encoder, T5Config.tiny())), 0)


def test_padding_changes_no_other_state(tiny):
    ids, mask = _padded(2, 12, 384)
    noise = np.random.default_rng(0).integers(0, 384, ids.shape)
    encode = jax.jit(lambda ids, mask: tiny(ids, mask))
    clean = np.asarray(encode(ids, mask))
    noisy = np.asarray(encode(np.where(mask, ids, noise), mask))
    np.testing.assert_allclose(clean[mask], noisy[mask], atol=1e-5)
    np.testing.assert_allclose(clean[1:, :2], encode(ids[1:, :2], mask[1:, :2]), atol=1e-5)


def test_order_of_tokens_matters(tiny):
    ids, mask = jnp.asarray([[5, 6, 7, 8], [8, 7, 6, 5]]), jnp.ones((2, 4), bool)
    forward, backward = jax.jit(lambda ids, mask: tiny(ids, mask))(ids, mask)
    assert np.abs(forward - backward[::-1]).max() > 1e-4


def test_bfloat16_weights_compute_in_bfloat16(tiny):
    ids, mask = jnp.asarray([[5, 6, 7, 0]]), jnp.asarray([[True, True, True, False]])
    encode = jax.jit(lambda network: network(ids, mask))
    exact = encode(tiny)
    with jax.numpy_dtype_promotion("standard"):  # flax's and jax's own code promotes bfloat16
        rough = encode(in_half(tiny))
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(exact, rough.astype(jnp.float32), atol=0.1)


def test_flan_t5_large_has_the_released_size():
    network = abstract(lambda rngs: T5Encoder(T5Config.flan_t5_large(), rngs=rngs))
    assert parameter_count(network) == 341_231_104
