"""Adapters of a frozen UNet: they begin as nothing, are small, and know the time of a token."""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.mapper import MapperConfig
from mfm_jax.models.adapters import AdapterConfig, AttentionAdapter, FeatureAdapter
from mfm_jax.models.streams import Stream
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from tests.bundles import filled

KINDS = {"features": FeatureAdapter, "attention": AttentionAdapter}
SIZES = UNetConfig(
    channels=(8, 16),
    attentions=((), (0,)),
    contexts=(12,),
    heads=2,
    latent_channels=4,
    resnets=1,
    groups=4,
)
CONFIG = AdapterConfig(SIZES, (("video", 21, 6),), width=20, columns=8)
ROWS = 9  # odd, so that the next level has more than half of them


@pytest.fixture(scope="module")
def unet():
    return filled(abstract(partial(UNet, SIZES)), 1)


@pytest.fixture(scope="module")
def given():
    """Latents, time steps and contexts."""
    one, two = jax.random.split(jax.random.key(0))
    context = jax.random.normal(two, (2, 3, 12))
    return jax.random.normal(one, (2, ROWS, 8, 4)), jnp.array([3, 700]), (context,)


@pytest.fixture(scope="module")
def video():
    """Tokens at 25 a second, longer than the latents, unlike any other number of this file."""
    tokens = jax.random.normal(jax.random.key(5), (2, 21, 6))
    return Stream(tokens, jnp.arange(21.0)[None].repeat(2, 0) / 25)


@jax.jit
def adapted(unet, adapter, given, video):
    beside = None if adapter is None else adapter({"video": video}, given[0].shape[1])
    return unet(*given, beside=beside)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_changes_no_bit_and_can_learn(kind, unet, given, video):
    adapter = KINDS[kind](CONFIG, rngs=nnx.Rngs(0))
    plain = adapted(unet, None, given, video)
    assert np.asarray(adapted(unet, adapter, given, video)).tobytes() == np.asarray(plain).tobytes()

    @jax.jit
    def gradient(adapter):
        return jax.grad(lambda a: (adapted(unet, a, given, video) ** 2).sum())(adapter)

    moved = {n: float(jnp.abs(g).max()) for n, g in named_weights(gradient(adapter)).items()}
    zero = {n for n, w in named_weights(adapter).items() if n.endswith("kernel") and not w.any()}
    assert len(zero) == (2 if kind == "features" else 4)
    assert all(moved[name] > 0 for name in zero)
    used = gradient(filled(abstract(partial(KINDS[kind], CONFIG)), 2))
    still = [n for n, g in named_weights(used).items() if not jnp.abs(g).max() > 0]
    assert not still


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", ["audioldm2", "audioldm2_large"])
def test_an_adapter_has_less_than_a_tenth_of_the_weights(kind, release):
    config = getattr(UNetConfig, release)(8)
    count = [
        sum(w.size for w in named_weights(abstract(build)).values())
        for build in (
            partial(UNet, config),
            partial(KINDS[kind], AdapterConfig(config, MapperConfig.base().encoders)),
        )
    ]
    assert 0.001 < count[1] / count[0] < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_matters_by_its_time_and_padding_does_not(kind, unet, given, video):
    adapter = filled(abstract(partial(KINDS[kind], CONFIG)), 2)
    base = adapted(unet, adapter, given, video)
    louder = video._replace(tokens=video.tokens.at[0, 4, 0].add(3.0))
    assert jnp.abs(adapted(unet, adapter, given, louder)[0] - base[0]).max() > 1e-4
    np.testing.assert_array_equal(adapted(unet, adapter, given, louder)[1], base[1])
    later = video._replace(seconds=video.seconds.at[0, 4].add(0.3))
    assert jnp.abs(adapted(unet, adapter, given, later)[0] - base[0]).max() > 1e-4
    order = jnp.array([*range(10, 21), *range(10)])
    turned = Stream(video.tokens[:, order], video.seconds[:, order])
    np.testing.assert_allclose(adapted(unet, adapter, given, turned), base, atol=1e-5)
    mask = jnp.ones((2, 21), bool).at[:, 4].set(False)
    both = [adapted(unet, adapter, given, v._replace(mask=mask)) for v in (video, louder)]
    np.testing.assert_array_equal(*both)


def test_features_are_added_on_the_rows_of_their_moment(given):
    """At the level of full resolution, in all columns."""
    adapter = filled(abstract(partial(FeatureAdapter, CONFIG)), 2)
    weights = dict(named_weights(adapter))
    for name in weights:
        if name.startswith("convs"):
            weights[name] = jnp.zeros_like(weights[name])  # they spread over neighbours
    adapter = with_weights(adapter, weights)
    silent = Stream(jnp.zeros((1, 18, 6)), (jnp.arange(18.0)[None] + 0.5) * 0.04)
    event = silent._replace(tokens=silent.tokens.at[0, 9, 2].set(5.0))
    x = jnp.zeros((1, 18, 8, 8))
    added = jax.jit(lambda adapter, video: adapter({"video": video}, 18)[0](x))
    change = np.abs(added(adapter, event) - added(adapter, silent))[0].max(axis=2)
    assert change.shape == (18, 8)
    assert change.max(axis=1).argmax() == 9
    assert change[:5].max() < 1e-3 < change[8:11].min()


def test_features_reach_as_far_as_the_dilations_say():
    """Each convolution reads two dilations on either side."""
    seconds = (jnp.arange(61.0)[None] + 0.5) * 0.04
    silent = jnp.zeros((1, 61, 6))
    event, x = silent.at[0, 30, 2].set(5.0), jnp.zeros((1, 61, 8, 8))

    def reach(*dilations):
        adapter = filled(abstract(partial(FeatureAdapter, replace(CONFIG, dilations=dilations))), 2)
        added = jax.jit(lambda tokens: adapter({"video": Stream(tokens, seconds)}, 61)[0](x))
        change = np.abs(added(event) - added(silent))[0].max(axis=(1, 2))
        return np.abs(np.flatnonzero(change > 1e-5) - 30).max()

    alone = reach()  # a token is laid on the rows nearby
    assert reach(1, 1) - alone == pytest.approx(4, abs=1)
    assert reach(1, 2, 4) - alone == pytest.approx(14, abs=1)
    with pytest.raises(ValueError, match="dilations are at least 1, not 0"):
        replace(CONFIG, dilations=(1, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_several_streams_are_read_each_with_its_times(kind, unet, given, video):
    config = replace(CONFIG, encoders=(("video", 21, 6), ("other", 3, 5)), stems=("video",))
    adapter = filled(abstract(partial(KINDS[kind], config)), 2)
    tokens, there = (
        jax.random.normal(jax.random.key(9), (2, 3, 5)),
        jnp.array([[True, True, False]] * 2),
    )
    other = Stream(tokens, jnp.array([[0.1, 0.5, 0.9]] * 2), there)

    @jax.jit
    def run(streams):
        return unet(*given, beside=adapter(streams, ROWS))

    base = run({"video": video, "other": other})
    for changed in (
        {"video": video._replace(tokens=-video.tokens), "other": other},
        {"video": video, "other": other._replace(tokens=other.tokens.at[:, 0, 0].set(7.0))},
        {"video": video, "other": other._replace(seconds=other.seconds + 0.2)},
    ):
        assert jnp.abs(run(changed) - base).max() > 1e-5
    padding = other._replace(tokens=other.tokens.at[:, 2].set(9.0))
    np.testing.assert_array_equal(run({"video": video, "other": padding}), base)
    with pytest.raises(ValueError, match="reads other as well"):
        adapter({"video": video}, ROWS)
