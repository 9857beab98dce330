"""The VAE against diffusers' AutoencoderKL, and what its latents are."""

import dataclasses

import diffusers
import jax
import numpy as np
import pytest
import torch
from jax import numpy as jnp
from safetensors.numpy import load_file

from convert.vae import TABLE
from mfm_jax.layers import conv_doubled
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.storage.weights import abstract, named_weights, parameter_count, with_weights
from tests.bundles import in_half

LIVE = VAEConfig(scaling_factor=0.7, channels=(8, 12, 20), resnets=1, latent_channels=3, groups=4)
GOLDEN = VAEConfig(scaling_factor=0.41, channels=(16, 16, 32), resnets=2, groups=8)


def load(config, state):
    weights = {name: jax.device_put(a) for name, a in TABLE.to_ours(state)}
    return with_weights(abstract(lambda rngs: VAE(config, rngs=rngs)), weights, where="the VAE")


@pytest.fixture(scope="module")
def their_vae():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=3 * ("DownEncoderBlock2D",),
        up_block_types=3 * ("UpDecoderBlock2D",),
        block_out_channels=LIVE.channels,
        layers_per_block=LIVE.resnets,
        latent_channels=LIVE.latent_channels,
        norm_num_groups=LIVE.groups,
        scaling_factor=LIVE.scaling_factor,
    ).eval()
    with torch.no_grad():
        for name, weight in vae.named_parameters():
            weight += 0.2 * torch.randn_like(weight) if "norm" in name or "bias" in name else 0
    return vae


@pytest.fixture(scope="module")
def our_vae(their_vae):
    return load(LIVE, {name: a.numpy() for name, a in their_vae.state_dict().items()})


def last(array):
    """Channels last."""
    return jax.device_put(np.moveaxis(np.asarray(array), 1, -1))


@pytest.mark.parity
def test_encode_as_diffusers(parity, their_vae, our_vae):
    mel = np.random.default_rng(1).normal(size=(2, 1, 28, 36)).astype(np.float32)
    with torch.no_grad():
        posterior = their_vae.encode(torch.from_numpy(mel)).latent_dist
    mean, logvar = jax.jit(VAE.encode)(our_vae, last(mel))
    against, factor = "diffusers AutoencoderKL", LIVE.scaling_factor
    assert mean.shape == (2, 7, 9, 3)
    parity("VAE encode mean", against, mean, factor * last(posterior.mean), 1e-4)
    deviation = jnp.exp(logvar / 2)
    parity("VAE encode deviation", against, deviation, factor * last(posterior.std), 1e-4)


@pytest.mark.parity
def test_decode_as_diffusers(parity, their_vae, our_vae):
    latents = np.random.default_rng(2).normal(size=(2, 3, 7, 9)).astype(np.float32)
    with torch.no_grad():
        mel = their_vae.decode(torch.from_numpy(latents) / LIVE.scaling_factor).sample
    ours = jax.jit(VAE.decode)(our_vae, last(latents))
    parity("VAE decode", "diffusers AutoencoderKL", ours, last(mel), 1e-4)


@pytest.mark.parity
def test_modules_as_diffusers(parity, their_vae, our_vae):
    x = np.random.default_rng(3).normal(size=(2, 12, 14, 18)).astype(np.float32)
    wide = np.random.default_rng(4).normal(size=(2, 20, 7, 9)).astype(np.float32)
    theirs = their_vae.encoder
    against = "diffusers AutoencoderKL"
    with torch.no_grad():
        level = last(theirs.down_blocks[2](torch.from_numpy(x)))
        halved = last(theirs.down_blocks[1].downsamplers[0](torch.from_numpy(x)))
        middle = last(theirs.mid_block(torch.from_numpy(wide)))
        doubled = last(their_vae.decoder.up_blocks[1].upsamplers[0](torch.from_numpy(x)))

    @jax.jit
    def found(vae, x, wide):
        down = vae.encoder.down
        return (
            down[2].resnets[0](x),
            down[1].downsample(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))),
            vae.encoder.middle(wide),
            conv_doubled(vae.decoder.up[1].upsample, x),
        )

    resnet, down, mid, up = found(our_vae, last(x), last(wide))
    parity("VAE resnet with shortcut", against, resnet, level, 1e-4)
    parity("VAE downsample", against, down, halved, 1e-4)
    parity("VAE middle", against, mid, middle, 1e-4)
    parity("VAE upsample", against, up, doubled, 1e-4)


@pytest.mark.parity
def test_golden_pipeline(parity, reference):
    golden = load_file(reference / "audioldm2/golden/pipeline_io.safetensors")
    vae = load(GOLDEN, load_file(reference / "audioldm2/golden/pipeline_vae.safetensors"))
    mel = jax.jit(VAE.decode)(vae, last(golden["final_latents"]))
    against = "golden pipeline_io"
    parity("VAE decode", f"{against} mel", mel, last(golden["mel"]), 1e-4, relative_to="spread")
    mean, logvar = jax.jit(VAE.encode)(vae, last(golden["mel"]))
    means = mean / GOLDEN.scaling_factor, last(golden["vae.encode_mean"])
    parity("VAE encode", f"{against} vae.encode_mean", *means, 1e-4)
    logvars = logvar - 2 * np.log(GOLDEN.scaling_factor), last(golden["vae.encode_logvar"])
    parity("VAE encode", f"{against} vae.encode_logvar", *logvars, 1e-4)


def test_latents_are_scaled_on_the_way_in_and_out(our_vae):
    mel = jax.random.normal(jax.random.key(0), (1, 8, 8, 1))
    unscaled = dataclasses.replace(LIVE, scaling_factor=1.0)
    plain = with_weights(abstract(lambda rngs: VAE(unscaled, rngs=rngs)), named_weights(our_vae))
    encode, decode = jax.jit(VAE.encode), jax.jit(VAE.decode)
    (mean, logvar), (plain_mean, plain_logvar) = encode(our_vae, mel), encode(plain, mel)
    np.testing.assert_allclose(mean, 0.7 * plain_mean, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(logvar), 0.49 * jnp.exp(plain_logvar), rtol=1e-4)
    np.testing.assert_allclose(decode(our_vae, mean), decode(plain, plain_mean), atol=1e-4)


def test_tiny_fits_the_miniature():
    vae = abstract(lambda rngs: VAE(VAEConfig.tiny(), rngs=rngs))
    assert 0.2e6 < parameter_count(vae) < 0.3e6
    mean, logvar = jax.eval_shape(
        VAE.encode, vae, jax.ShapeDtypeStruct((2, 256, 64, 1), jnp.float32)
    )
    assert mean.shape == logvar.shape == (2, 64, 16, 8)
    assert jax.eval_shape(VAE.decode, vae, mean).shape == (2, 256, 64, 1)


def test_real_size_has_the_latents_of_the_unet():
    vae = abstract(lambda rngs: VAE(VAEConfig.audioldm2(0.41), rngs=rngs))
    mel = jax.ShapeDtypeStruct((1, 1000, 64, 1), jnp.float32)
    assert jax.eval_shape(VAE.encode, vae, mel)[0].shape == (1, 250, 16, 8)


def test_bfloat16_weights_compute_in_bfloat16(our_vae):
    half, mel = in_half(our_vae), jnp.ones((1, 8, 8, 1))
    with jax.numpy_dtype_promotion("standard"):  # flax's GroupNorm promotes bfloat16 by itself
        mean, logvar = jax.eval_shape(VAE.encode, half, mel)
        mel = jax.eval_shape(VAE.decode, half, jnp.ones((1, 2, 2, 3)))
    assert mean.dtype == logvar.dtype == mel.dtype == jnp.bfloat16


def test_refuses_to_guess_the_scaling_factor():
    with pytest.raises(ValueError, match=r"take it from vae/config\.json"):
        VAEConfig.audioldm2(None)
    with pytest.raises(ValueError, match="must be positive"):
        VAEConfig.audioldm2(0.0)


def test_refuses_a_mel_that_does_not_divide(our_vae):
    with pytest.raises(ValueError, match="pad both to a multiple of 4"):
        our_vae.encode(jnp.zeros((1, 30, 36, 1)))
