"""From windows of video to waveforms, and AudioLDM2's denoising golden from latents to waveform."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from convert.unet import TABLE as UNET_TABLE
from convert.unet import config as unet_config
from convert.vae import TABLE as VAE_TABLE
from convert.vocoder import table as vocoder_table
from mfm_jax.diffusion import Schedule, guide, sample
from mfm_jax.inference.pipeline import Sampling, Text, VideoToAudio, stitch
from mfm_jax.media.windows import Seen, Window
from mfm_jax.models.unet import UNet
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.weights import abstract, with_weights
from tests.bundles import untrained_bundle
from tests.windows import pair_spec

SPEC = pair_spec(2.56, 0.32, cavp_fps=12.5, cavp_size=32, timechat_frames=8, timechat_size=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return VideoToAudio.open(untrained_bundle(tmp_path_factory.mktemp("b") / "tiny").path)


def window(index: int, seed: int) -> Window:
    rng = np.random.default_rng(seed)
    return Window(
        index=index,
        start=2.24 * index,
        seconds=2.56,
        seen={
            "cavp": Seen(rng.integers(0, 256, (32, 32, 32, 3), np.uint8), np.arange(32) / 12.5),
            "timechat": Seen(rng.integers(0, 256, (8, 64, 64, 3), np.uint8), np.arange(8) * 0.32),
        },
    )


def test_spec_follows_from_the_configs(model):
    assert model.spec == SPEC
    assert model.encoders["timechat"].sentence == 12


def test_a_window_sounds_the_same_in_any_company_and_place(model):
    a, b, c = window(0, 1), window(1, 2), window(0, 3)
    first = model([a, b])
    assert first.shape == (2, 40_960)
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 1
    np.testing.assert_array_equal(model([c, a])[1], first[0])
    np.testing.assert_array_equal(model([b, a]), first[::-1])


def test_seed_window_and_frames_all_matter(model):
    a = window(0, 1)
    base = model([a, a])[0]
    assert np.abs(model([a, a], seed=1)[0] - base).max() > 1e-3
    assert np.abs(model([window(1, 1), a])[0] - base).max() > 1e-3
    assert np.abs(model([window(0, 2), a])[0] - base).max() > 1e-5


@pytest.mark.parametrize("sampling", [Sampling("ddim", 4, 1.0, 1.0), Sampling("dpm++", 4, 3.0)])
def test_every_sampler_is_independent_of_the_batch(model, sampling):
    a, b = window(0, 1), window(0, 2)
    np.testing.assert_array_equal(model([a, b], 0, sampling)[0], model([b, a], 0, sampling)[1])


def test_a_prompt_needs_a_unet_that_reads_text(model):
    with pytest.raises(ValueError, match="reads no text"):
        model([window(0, 1)], prompt=Text(jnp.zeros((1, 2, 8)), jnp.ones((1, 2), bool)))


def test_stitched_windows_cover_the_video_at_constant_power():
    rng = np.random.default_rng(0)
    spec = pair_spec(2.56, 0.64, cavp_fps=4, cavp_size=8, timechat_frames=2, timechat_size=8)
    waves = [rng.standard_normal(40_960).astype(np.float32) for _ in range(40)]
    total = stitch(waves, spec, 39 * 30_720 + 40_960)
    np.testing.assert_array_equal(total[:30_720], waves[0][:30_720])
    fades = np.stack([total[i * 30_720 :][:10_240] for i in range(1, 40)])
    power = (fades**2).mean(axis=0).reshape(10, -1).mean(axis=1)
    np.testing.assert_allclose(power, 1.0, atol=0.04)
    one = stitch(waves[:1], spec, 12_345)
    np.testing.assert_array_equal(one, waves[0][:12_345])
    longer = stitch(waves[:1], spec, 41_000)
    np.testing.assert_array_equal(longer, np.pad(waves[0], (0, 40)))


@pytest.mark.parity
def test_denoising_golden_from_latents_to_waveform(reference, parity):
    """AudioLDM2Pipeline of diffusers: 5 DDIM steps, guidance 3.5, then VAE and vocoder."""
    golden = reference / "audioldm2/golden"
    sizes = json.loads((golden / "pipeline_config.json").read_text())
    io = load_file(golden / "pipeline_io.safetensors")

    def opened(build, config, table, file):
        weights = {k: jax.device_put(v) for k, v in table.to_ours(load_file(golden / file))}
        return with_weights(abstract(lambda rngs: build(config, rngs=rngs)), weights)

    u, v, w = sizes["unet"], sizes["vae"], sizes["vocoder"]
    unet = opened(UNet, unet_config(u), UNET_TABLE, "pipeline_unet.safetensors")
    vae_config = VAEConfig(
        v["scaling_factor"], tuple(v["block_out_channels"]), groups=v["norm_num_groups"]
    )
    vae = opened(VAE, vae_config, VAE_TABLE, "pipeline_vae.safetensors")
    vocoder_config = VocoderConfig(w["upsample_initial_channel"], w["model_in_dim"])
    vocoder = opened(
        Vocoder, vocoder_config, vocoder_table(vocoder_config), "pipeline_vocoder.safetensors"
    )

    def given(kind):
        return (
            jnp.asarray(io[f"in.{kind}generated_prompt_embeds"]),
            jnp.asarray(io[f"in.{kind}prompt_embeds"]),
            jnp.asarray(io[f"in.{kind}attention_mask"]).astype(bool),
        )

    @jax.jit
    def run(unet, vae, vocoder, positive, negative, noise):
        def denoise(x, t, condition):
            loa, text, mask = condition
            return unet(x, t, (loa, text), (None, mask))

        latents = sample(guide(denoise, positive, negative, 3.5), noise, Schedule(), steps=5)
        mel = vae.decode(latents)[..., 0]
        return latents, mel, vocoder(mel)

    noise = jax.device_put(np.moveaxis(io["in.latents"], 1, -1))
    latents, mel, wave = run(unet, vae, vocoder, given(""), given("negative_"), noise)
    against = "golden pipeline_io, end to end"
    theirs = np.moveaxis(io["final_latents"], 1, -1)
    parity("AudioLDM2, latents", against, latents, theirs, 1e-4, relative_to="spread")
    parity("AudioLDM2, log-mel", against, mel, io["mel"][:, 0], 1e-4, relative_to="spread")
    theirs = io["waveform"]
    ours = wave[:, : theirs.shape[-1]]
    parity("AudioLDM2, waveform", against, ours, theirs, 1e-4, relative_to="spread")
