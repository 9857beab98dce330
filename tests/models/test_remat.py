"""Every network that is trained follows `compute.remat`, or training it with one is refused."""

from dataclasses import replace
from functools import cache, partial

import jax
import numpy as np
import pytest
from flax import nnx
from jax import numpy as jnp

from mfm_jax.errors import SettingError
from mfm_jax.layers.remat import POLICIES, rematerialise
from mfm_jax.mapper import MapperConfig, Stream, build_mapper
from mfm_jax.models.audiomae import AudioMAE, AudioMAEConfig, AudioMAEDecoder, pretraining_loss
from mfm_jax.models.cavp import CAVP, CAVPConfig
from mfm_jax.models.listener import Listener, ListenerConfig
from mfm_jax.models.timechat import TimeChat, TimeChatConfig
from mfm_jax.models.unet import UNet, UNetConfig
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.weights import abstract, named_weights, with_weights
from tests.bundles import filled

KEY = jax.random.key(0)
LINEAR = replace(MapperConfig.tiny(), kind="linear_pooled")
# A block or two of each kind show what is kept as well as more of them.
DROPOUT = replace(CAVPConfig.tiny().audio, dropout=0.2)
SHALLOW_CAVP = replace(CAVPConfig.tiny(), blocks=(1, 1, 1, 1), audio=DROPOUT)
SHALLOW_AUDIOMAE = replace(AudioMAEConfig.tiny(), depth=2, averaged=2, decoder_depth=1)
SHALLOW_UNET = replace(UNetConfig.tiny(), channels=(24,), attentions=((0,),))
TINY_TIMECHAT = TimeChatConfig.tiny()
SHALLOW_TIMECHAT = replace(
    TINY_TIMECHAT,
    vit=replace(TINY_TIMECHAT.vit, depth=1),
    video_qformer=replace(TINY_TIMECHAT.video_qformer, depth=1),
)
SHALLOW_VAE = replace(VAEConfig.tiny(), channels=(16, 24))


class Autoencoder(nnx.Module):
    def __init__(self, *, rngs):
        self.encoder = AudioMAE(SHALLOW_AUDIOMAE, rngs=rngs)
        self.decoder = AudioMAEDecoder(SHALLOW_AUDIOMAE, rngs=rngs)


def noise(*shape):
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def spread(x):
    """A number that depends on every element in another way."""
    return (x * jnp.cos(jnp.arange(x.size, dtype=jnp.float32)).reshape(x.shape)).mean()


def map_streams(mapper):
    streams = {
        "cavp": Stream(noise(2, 32, 64), jnp.linspace(0.0, 2.5, 32)[None].repeat(2, 0)),
        "timechat": Stream(noise(2, 16, 96), jnp.linspace(0.0, 2.5, 16)[None].repeat(2, 0)),
    }
    return spread(mapper(streams, noise(2, 16, 128)))


def align(cavp):
    frames, mel = noise(1, 32, 32, 32, 3), noise(1, 128, 128)
    video, audio, _ = cavp(frames, mel, pool=False, rngs=nnx.Rngs(KEY))
    return spread(video) + spread(audio)


def watch(timechat):
    ids, mask = jnp.ones((1, 8, 12), jnp.int32), jnp.ones((1, 8, 12), bool).at[..., 9:].set(False)
    return spread(timechat.encode(noise(1, 8, 64, 64, 3), ids, mask).video)


def denoise(unet):
    seconds = 0.16 * jnp.arange(16, dtype=jnp.float32)
    return spread(
        unet(noise(1, 64, 16, 8), jnp.array([500]), (noise(1, 16, 128),), context_seconds=seconds)
    )


NETWORKS = {
    "mapper": (partial(build_mapper, MapperConfig.tiny()), map_streams),
    "cavp": (partial(CAVP, SHALLOW_CAVP), align),
    "timechat": (partial(TimeChat, SHALLOW_TIMECHAT), watch),
    "audiomae": (
        Autoencoder,
        lambda m: pretraining_loss(m.encoder, m.decoder, noise(2, 256, 128), key=KEY),
    ),
    "unet": (partial(UNet, SHALLOW_UNET), denoise),
    "vae": (
        partial(VAE, SHALLOW_VAE),
        lambda vae: spread(vae.decode(vae.encode(noise(1, 64, 16, 1))[0])),
    ),
    "vocoder": (
        partial(Vocoder, VocoderConfig.tiny()),
        lambda vocoder: spread(vocoder(noise(1, 8, 64))),
    ),
}
CONVOLUTIONS = ("cavp", "vocoder")
"""Networks whose blocks have no matrix products with weights."""
WITHOUT = {
    "linear mapper": (partial(build_mapper, LINEAR), map_streams),
    "listener": (
        partial(Listener, ListenerConfig(("metal", "wood"))),
        lambda listener: spread(listener(noise(2, 32, 64))),
    ),
}


def objective(skeleton, value, policy):
    """The value and the running statistics after it, of weights, as a step of training has them."""

    def of(weights):
        module = with_weights(skeleton, weights)
        module.train()
        with rematerialise(policy):
            made = value(module)
        stats = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
        return made, {str(path): leaf.get_value() for path, leaf in stats}

    return of


@cache
def results(name):
    """Return gradients and running statistics, and the size of what is kept, under each policy.

    The policy between the two others is computed for the mapper alone, and only traced elsewhere:
    JAX keeps gradients right, and we choose what is kept.
    """
    build, value = NETWORKS[name]
    skeleton = abstract(build)
    weights = named_weights(filled(skeleton, 0))
    kept = {}

    @partial(jax.jit, static_argnums=0)
    def graded(policy, weights):
        _, back, stats = jax.vjp(objective(skeleton, value, policy), weights, has_aux=True)
        kept[policy] = sum(leaf.size for leaf in jax.tree.leaves(back))
        return back(jnp.ones(()))[0], stats

    computed = [p for p in POLICIES if p != "products" or name == "mapper"]
    for policy in set(POLICIES) - set(computed):
        graded.eval_shape(policy, weights)
    return {policy: graded(policy, weights) for policy in computed}, kept


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_statistics_stay_and_less_is_kept(name):
    found, kept = results(name)
    assert kept["blocks"] <= kept["products"] < kept["none"], kept
    assert (kept["blocks"] < kept["products"]) == (name not in CONVOLUTIONS), kept
    for policy in found.keys() - {"none"}:
        for made, expected in zip(found[policy], found["none"], strict=True):
            scale = max(np.abs(x).max() for x in jax.tree.leaves(found["none"][0]))
            for key, one in expected.items():
                np.testing.assert_allclose(
                    made[key], one, rtol=1e-4, atol=1e-5 * scale, err_msg=key
                )


def test_running_statistics_change_also_in_blocks_that_are_computed_again():
    found, _ = results("cavp")
    before = filled(abstract(NETWORKS["cavp"][0]), 0)
    before = nnx.to_flat_state(nnx.state(before, nnx.BatchStat))
    for policy in ("none", "blocks"):
        _, stats = found[policy]
        for path, leaf in before:
            assert not np.array_equal(leaf.get_value(), stats[str(path)]), (policy, path)


@pytest.mark.parametrize("policy", ["products", "blocks"])
@pytest.mark.parametrize("name", WITHOUT)
def test_a_network_without_blocks_is_refused(name, policy):
    build, value = WITHOUT[name]
    skeleton = abstract(build)

    def trace(policy):
        of = objective(skeleton, value, policy)
        jax.eval_shape(jax.grad(of, has_aux=True), named_weights(skeleton))

    with pytest.raises(SettingError, match=f"compute.remat={policy}: this network has no blocks"):
        trace(policy)
    trace("none")
