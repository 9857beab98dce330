"""Every network that is trained follows `compute.remat`, or training it with one is refused."""

from dataclasses import replace
from functools import partial

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
DROPOUT = replace(CAVPConfig.tiny().audio, dropout=0.2)


class Autoencoder(nnx.Module):
    def __init__(self, *, rngs):
        self.encoder = AudioMAE(AudioMAEConfig.tiny(), rngs=rngs)
        self.decoder = AudioMAEDecoder(AudioMAEConfig.tiny(), rngs=rngs)


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
    "cavp": (partial(CAVP, replace(CAVPConfig.tiny(), audio=DROPOUT)), align),
    "timechat": (partial(TimeChat, TimeChatConfig.tiny()), watch),
    "audiomae": (
        Autoencoder,
        lambda m: pretraining_loss(m.encoder, m.decoder, noise(2, 256, 128), key=KEY),
    ),
    "unet": (
        partial(UNet, replace(UNetConfig.tiny(), channels=(24, 48), attentions=((), (0,)))),
        denoise,
    ),
    "vae": (
        partial(VAE, VAEConfig.tiny()),
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


def objective(build, value, policy):
    """The value and the running statistics after it, of weights, as a step of training has them."""
    skeleton = abstract(build)

    def of(weights):
        module = with_weights(skeleton, weights)
        module.train()
        with rematerialise(policy):
            made = value(module)
        stats = nnx.to_flat_state(nnx.state(module, nnx.BatchStat))
        return made, {str(path): leaf.get_value() for path, leaf in stats}

    return of, named_weights(filled(skeleton, 0))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_and_statistics_stay_and_less_is_kept(name):
    found, kept = {}, {}
    for policy in POLICIES:
        of, weights = objective(*NETWORKS[name], policy)
        found[policy] = jax.jit(jax.grad(of, has_aux=True))(weights)
        back = jax.eval_shape(lambda w, of=of: jax.vjp(of, w, has_aux=True)[1], weights)
        kept[policy] = sum(leaf.size for leaf in jax.tree.leaves(back))
    assert kept["blocks"] <= kept["products"] < kept["none"], kept
    assert (kept["blocks"] < kept["products"]) == (name not in CONVOLUTIONS), kept
    for policy in ("products", "blocks"):
        for made, expected in zip(found[policy], found["none"], strict=True):
            scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found["none"][0]))
            for key, one in expected.items():
                np.testing.assert_allclose(
                    made[key], one, rtol=1e-4, atol=1e-5 * scale, err_msg=key
                )


def test_running_statistics_change_also_in_blocks_that_are_computed_again():
    for policy in ("none", "blocks"):
        of, weights = objective(*NETWORKS["cavp"], policy)
        _, stats = jax.jit(of)(weights)
        before = filled(abstract(NETWORKS["cavp"][0]), 0)
        before = nnx.to_flat_state(nnx.state(before, nnx.BatchStat))
        for path, leaf in before:
            assert not np.array_equal(leaf.get_value(), stats[str(path)]), (policy, path)


@pytest.mark.parametrize("policy", ["products", "blocks"])
@pytest.mark.parametrize("name", WITHOUT)
def test_a_network_without_blocks_is_refused(name, policy):
    of, weights = objective(*WITHOUT[name], policy)
    with pytest.raises(SettingError, match=f"compute.remat={policy}: this network has no blocks"):
        jax.grad(of, has_aux=True)(weights)
    of, weights = objective(*WITHOUT[name], "none")
    jax.grad(of, has_aux=True)(weights)
