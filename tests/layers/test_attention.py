"""Attention: one function against jax's own, and a cache that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mfm_jax.layers import Attention, attend, time_embedding


def qkv(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (2, 5, 3, 8), (2, 7, 3, 8), (2, 7, 3, 8)
    return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True)]


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_attend_equals_jax(scale, masked, biased):
    q, k, v = qkv()
    mask = jax.random.bernoulli(jax.random.key(1), 0.6, (2, 1, 5, 7)).at[..., 0].set(True)
    bias = jax.random.normal(jax.random.key(2), (1, 3, 5, 7))
    given = {"mask": mask if masked else None, "bias": bias if biased else None, "scale": scale}
    np.testing.assert_allclose(
        attend(q, k, v, **given), jax.nn.dot_product_attention(q, k, v, **given), atol=2e-6
    )


@pytest.mark.parametrize("masked", [False, True])
def test_causal_attention_equals_jax(masked):
    q, k, v = qkv()
    mask = jax.random.bernoulli(jax.random.key(1), 0.6, (2, 1, 5, 7)).at[..., 0].set(True)
    mask = mask if masked else None
    np.testing.assert_allclose(
        attend(q, k, v, mask=mask, causal=True),
        jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=True),
        atol=2e-6,
    )


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
@pytest.mark.parametrize(
    ("lengths", "head_dim", "causal"),
    [((144, 144), 64, True), ((257, 257), 88, False), ((1024, 8), 32, False)],
    ids=["GPT-2", "EVA-CLIP", "UNet's LOA"],
)
def test_cudnn_attends_like_the_written_out_form(lengths, head_dim, causal):
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = [(2, length, 4, head_dim) for length in (lengths[0], lengths[1], lengths[1])]
    inputs = [jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)]

    def value(q, k, v):
        y = attend(q, k, v, causal=causal).astype(jnp.float32)
        return (y * jnp.sin(jnp.arange(y.size).reshape(y.shape))).sum(), y

    program = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))
    assert "__cudnn$fmha" in program.lower(*inputs).compile().as_text()
    exact = [x.astype(jnp.float32) for x in inputs]  # of which cuDNN does nothing
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(jax.grad(value, argnums=(0, 1, 2), has_aux=True))(*exact)
    for made, true in zip(*map(jax.tree.leaves, (program(*inputs), expected)), strict=True):
        error = jnp.linalg.norm(made.astype(jnp.float32) - true) / jnp.linalg.norm(true)
        assert error < 1e-2


def test_scores_and_softmax_are_float32_in_half_precision():
    q, k, v = qkv(jnp.bfloat16)
    q = q * 30.0  # scores of hundreds, where bfloat16 steps are 2
    exact = attend(*(x.astype(jnp.float32) for x in (q, k, v)))
    result = attend(q, k, v)
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result.astype(jnp.float32), exact, atol=0.03)


def test_a_row_that_may_see_nothing_is_finite():
    q, k, v = qkv()
    assert jnp.all(jnp.isfinite(attend(q, k, v, mask=jnp.zeros((2, 1, 5, 7), bool))))


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="5 heads do not divide the width 12"):
        Attention(12, heads=5, rngs=nnx.Rngs(0))


def test_cached_steps_equal_causal_attention():
    layer = Attention(12, heads=3, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (2, 6, 12))

    @jax.jit
    def in_steps(layer, x):
        y, prefix = layer.prefill(x[:, :2])
        cache, steps = layer.empty_cache(2, 4), [y]
        for i in range(2, 6):
            y, cache = layer.extend(x[:, i : i + 1], prefix, cache)
            steps.append(y)
        return jnp.concatenate(steps, 1)

    np.testing.assert_allclose(in_steps(layer, x), layer(x, causal=True), atol=1e-6)


def test_every_weight_names_its_logical_axes():
    layer = Attention(12, heads=3, context_width=20, biases="qvo", rngs=nnx.Rngs(0))
    for path, leaf in nnx.to_flat_state(nnx.state(layer)):
        assert len(leaf.get_metadata("axes")) == leaf.get_value().ndim, path
    assert layer.k.bias is None
    assert layer.k.kernel.shape == (20, 12)


def test_a_time_embedding_is_one_to_one_and_of_unit_circles():
    seconds = jnp.linspace(0.0, 10.24, 257)
    vectors = time_embedding(seconds, 32)
    np.testing.assert_allclose(vectors[:, :16] ** 2 + vectors[:, 16:] ** 2, 1.0, atol=1e-5)
    gaps = jnp.linalg.norm(vectors[1:] - vectors[:-1], axis=1)
    assert gaps.min() > 0.1
    with pytest.raises(ValueError, match="even width, got 7"):
        time_embedding(seconds, 7)
