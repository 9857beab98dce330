"""Operations of programs as they are written."""

import jax
import pytest
from jax import lax
from jax import numpy as jnp

from mfm_jax.cost.flops import count_flops
from mfm_jax.layers import tpu_attention
from mfm_jax.mapper import MapperConfig, Stream, build_mapper
from mfm_jax.models.gpt2 import GPT2, GPT2Config
from mfm_jax.storage.weights import abstract

pytestmark = pytest.mark.usefixtures("no_program_cache")
X, W = jnp.zeros((8, 64)), jnp.zeros((64, 64))
ONE = 2 * 8 * 64 * 64
"""Operations of a product of X and W."""


def xla(function, *arguments) -> float:
    """Return XLA's count: all operations, the body of a loop once."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def looped(x, w, length=7):
    return lax.scan(lambda c, _: (jnp.tanh(c @ w), None), x, None, length=length)[0]


def test_a_loop_counts_as_often_as_it_runs():
    assert count_flops(looped, X, W) == 7 * ONE
    assert count_flops(looped, X, W, length=3) == 3 * ONE


def test_gradients_are_two_more_products():
    assert count_flops(jax.grad(lambda x, w: looped(x, w).sum(), (0, 1)), X, W) == 3 * 7 * ONE


def test_what_is_computed_anew_counts_again():
    def loss(x, w):
        return jax.checkpoint(lambda x, w: jnp.sin(x @ w))(x, w).sum()

    assert count_flops(jax.value_and_grad(loss, (0, 1)), X, W) == 4 * ONE


def test_what_nothing_reads_does_not_count():
    def loss(x, w):
        return jnp.sin(x @ w @ w).sum(), x @ w

    assert count_flops(lambda x, w: jax.jit(loss)(x, w)[1], X, W) == ONE
    assert count_flops(jax.grad(lambda x, w: (x @ w).sum()), X, W) == ONE  # of x alone, no value


def test_of_branches_the_one_that_does_most():
    def either(x, w):
        return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x)

    assert count_flops(either, X, W) == 2 * ONE


def test_a_loop_of_unknown_length_is_an_error():
    def until(x, w):
        return lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ w, x)

    with pytest.raises(ValueError, match="its length is not known"):
        count_flops(until, X, W)


@pytest.mark.parametrize(
    "options",
    [
        {"window_strides": (1, 1), "padding": "SAME"},
        {"window_strides": (2, 2), "padding": "VALID"},
        {"window_strides": (1, 2), "padding": ((0, 3), (1, 1)), "rhs_dilation": (2, 1)},
        {"window_strides": (1, 1), "padding": ((2, 2), (1, 1)), "lhs_dilation": (3, 2)},
        {"window_strides": (1, 1), "padding": "SAME", "feature_group_count": 4},
    ],
)
def test_convolutions_are_counted_as_xla_counts_them(options):
    groups = options.get("feature_group_count", 1)
    x, k = jnp.zeros((3, 17, 12, 8)), jnp.zeros((3, 4, 8 // groups, 16))

    def convolve(x, k):
        axes = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, k, dimension_numbers=axes, **options)

    assert count_flops(convolve, x, k) == xla(convolve, x, k)


def test_gpt2_small_does_what_its_sizes_say():
    """24 L d^2 + 4 L^2 d operations a block, after Kaplan et al. 2020, table 1."""
    config, length = GPT2Config.small(), 128
    network = abstract(lambda rngs: GPT2(config, rngs=rngs))
    embeds = jax.ShapeDtypeStruct((1, length, config.width), jnp.float32)
    block = 24 * length * config.width**2 + 4 * length**2 * config.width
    assert count_flops(lambda n, x: n(x), network, embeds) == config.depth * block


def test_generating_counts_every_token():
    """LOA of 8 tokens: a pass over the prefix without its last position, then eight steps.

    The last block computes only keys and values of the prefix.
    """
    config = MapperConfig.base()
    network = abstract(lambda rngs: build_mapper(config, rngs=rngs))
    streams = jax.eval_shape(
        lambda: {n: Stream(jnp.zeros((1, t, d)), jnp.zeros((1, t))) for n, t, d in config.encoders}
    )
    found = count_flops(lambda n, s: n.generate(s), network, streams)
    dense = config.gpt2.width**2 * (24 * config.gpt2.depth * (136 + 8) - 20 * 136)
    assert dense < found < 1.1 * dense


def test_a_kernel_counts_as_it_says_on_all_devices():
    def attend(q):
        return tpu_attention.attention(q, q, q, lambda *x: x[0], 1.0, True)

    q = jnp.zeros((8, 24, 4, 32), jnp.bfloat16)
    once = 4 * 8 * 24 * 24 * 128
    assert count_flops(attend, q) == once
    axes = (jax.sharding.AxisType.Auto,) * 3  # as `make_mesh` makes them
    mesh = jax.sharding.AbstractMesh((4, 2, 1), ("data", "fsdp", "tensor"), axes)
    with jax.sharding.use_abstract_mesh(mesh):
        assert count_flops(attend, q) == once
        # Eight devices cannot share seven examples: each does them all, which counts once.
        assert count_flops(attend, q[:7]) == once * 7 // 8
