import json

import diffusers
import jax
import numpy as np
import pytest
import torch

from convert.table import ConversionError
from convert.vae import TABLE, config, their_config
from mfm_jax.models.vae import VAE, VAEConfig
from mfm_jax.storage.weights import abstract, parameter_count
from tests.exported import open_exported, random_network
from tests.table_checks import check_table

TINY = VAEConfig(scaling_factor=0.7, channels=(8, 12), resnets=1, latent_channels=3, groups=4)


@pytest.fixture
def released(reference):
    """Return the settings of the release, with a `scaling_factor` of our choice."""
    return json.loads((reference / "audioldm2/configs/vae.json").read_text())


def test_table_fits_the_released_checkpoint(reference):
    manifest = json.loads((reference / "audioldm2" / "manifest_vae.json").read_text())
    ours = VAEConfig.audioldm2(scaling_factor=0.41)
    module = abstract(lambda rngs: VAE(ours, rngs=rngs))
    assert parameter_count(module) == 55_376_873
    check_table(TABLE, manifest, module)


def test_the_released_config(released):
    assert config(released | {"scaling_factor": 0.41}) == VAEConfig.audioldm2(0.41)


def test_never_guesses_the_scaling_factor(released):
    with pytest.raises(ConversionError, match="scaling_factor must be a positive number, is None"):
        config(released)
    del released["scaling_factor"]
    with pytest.raises(ConversionError, match="scaling_factor not given"):
        config(released)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "_class_name must be AutoencoderKL, is Auto"),
        ({"in_channels": 3}, "in_channels must be 1, is 3"),
        ({"act_fn": "relu"}, "act_fn must be silu, is relu"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention must be True, is False"),
        ({"use_post_quant_conv": False}, "use_post_quant_conv must be True, is False"),
        ({"shift_factor": 0.1}, "shift_factor must be None, is 0.1"),
        ({"latents_mean": [0.1]}, r"latents_mean must be None, is \[0.1\]"),
        ({"block_out_channels": [128, 256]}, "down_block_types must be .* is "),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "up_block_types must be .* is "),
    ],
)
def test_refuses_what_the_network_does_not_have(released, change, message):
    with pytest.raises(ConversionError, match=message):
        config(released | {"scaling_factor": 0.41} | change)


@pytest.mark.parity
def test_diffusers_opens_an_export(tmp_path, parity, caplog):
    ours, weights = random_network(VAE, TINY)
    folder = tmp_path / "vae"
    exported = TABLE.to_theirs(weights)
    theirs = open_exported(diffusers.AutoencoderKL, folder, their_config(TINY), exported, caplog)
    theirs.save_config(tmp_path / "again")
    assert config(json.loads((tmp_path / "again/config.json").read_text())) == TINY
    mel = np.random.default_rng(1).standard_normal((2, 8, 12, 1), np.float32)
    with torch.no_grad():
        latents = theirs.encode(torch.from_numpy(mel).movedim(3, 1)).latent_dist.mean
        heard = theirs.decode(latents).sample
    latents = latents.movedim(1, 3).numpy() * theirs.config.scaling_factor
    mean, _ = jax.jit(VAE.encode)(ours, mel)
    parity("VAE encode, exported folder", "diffusers AutoencoderKL", mean, latents, 1e-4)
    result = jax.jit(VAE.decode)(ours, latents)
    against = "diffusers AutoencoderKL"
    parity("VAE decode, exported folder", against, result, heard.movedim(1, 3), 1e-4)
