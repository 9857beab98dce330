"""A vocoder of oscillators sounds like its mel before it has learned anything."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.errors import SettingError
from mfm_jax.foley.oscillators import become_oscillators
from mfm_jax.foley.recipes.vocoder import OscillatorVocoderRecipe
from mfm_jax.foley.scores import mel_distance
from mfm_jax.foley.world import World, generate_clip
from mfm_jax.media.audio import RATE, log_mel
from mfm_jax.models.vocoder import Vocoder, VocoderConfig
from mfm_jax.storage.weights import initialise
from mfm_jax.train.recipes.vocoder import VocoderRecipe

HOP = VocoderConfig.tiny().hop


@pytest.fixture(scope="module")
def oscillators():
    vocoder = initialise(partial(Vocoder, VocoderConfig.tiny()), 0)
    become_oscillators(vocoder)
    return vocoder


def vocoded(vocoder, wave):
    mel = jnp.asarray(log_mel(np.asarray(wave, np.float32)))[None]
    return np.asarray(jax.jit(Vocoder.__call__)(vocoder, mel))[0, : len(wave) // HOP * HOP]


@pytest.mark.parametrize("hz", [300, 1000, 3300])
@pytest.mark.parametrize("level", [0.05, 0.3])
def test_a_tone_at_a_harmonic_keeps_its_pitch_and_level(oscillators, hz, level):
    tone = level * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)
    made = vocoded(oscillators, tone)[RATE // 4 : -RATE // 4]
    spectrum = np.abs(np.fft.rfft(made))
    loudest = spectrum.argmax() * RATE / len(made)
    assert abs(loudest - hz) < 101  # of the bin's harmonics any may be the loudest
    assert 0.3 < made.std() / (level / np.sqrt(2)) < 3


def test_it_repeats_with_the_frames_of_a_steady_mel(oscillators):
    tone = 0.1 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)
    mel = np.repeat(np.asarray(log_mel(tone.astype(np.float32)))[50:51], 100, axis=0)
    made = np.asarray(jax.jit(Vocoder.__call__)(oscillators, jnp.asarray(mel)[None]))[0]
    steady = made[20 * HOP : 80 * HOP].reshape(60, HOP)
    np.testing.assert_allclose(steady, np.broadcast_to(steady[:1], steady.shape), atol=1e-5)
    assert steady.std() > 0.01


def test_silence_stays_silent(oscillators):
    assert np.abs(vocoded(oscillators, np.zeros(RATE))).max() < 1e-3


def test_clips_sound_like_themselves_from_the_first_step_on():
    """Against the same network with random weights, as loud as the clips."""
    waves = [generate_clip(World(), seed).audio for seed in range(6)]
    source = [{"mel": np.asarray(log_mel(wave)), "wave": wave} for wave in waves]
    far = {}
    for start, kind in (("oscillators", OscillatorVocoderRecipe), ("random", VocoderRecipe)):
        recipe = kind()
        module = recipe.warm_start(initialise(recipe.build, 0), source)
        mels = [np.asarray(log_mel(vocoded(module, wave))) for wave in waves]
        far[start] = np.mean([mel_distance(m, s["mel"]) for m, s in zip(mels, source, strict=True)])
    assert far["oscillators"] < 0.3
    assert far["random"] > 3 * far["oscillators"]


def test_every_weight_can_still_be_learned(oscillators):
    """What begins at 0 has a gradient, or what it is multiplied with has one."""
    wave = generate_clip(World(), 0).audio
    mel = jnp.asarray(log_mel(wave))[None, 160:224]  # about its first contact
    noise = jax.random.normal(jax.random.key(0), (1, 64 * HOP))
    gradients = jax.jit(jax.grad(lambda v: jnp.sum(v(mel) * noise)))(oscillators)
    outer = [gradients.conv_out, *(c for block in gradients.blocks for c in block.plain)]
    for its in outer:
        assert jnp.abs(its.kernel[...]).max() > 0


@pytest.mark.parametrize(
    "network",
    [VocoderConfig.audioldm2(), VocoderConfig(128, rates=(1, 16, 10), kernels=(3, 32, 30))],
)
def test_sizes_without_room_for_them_are_refused(network):
    with pytest.raises(SettingError, match=r"rates of \(1, a, b\) and 256 channels or more"):
        OscillatorVocoderRecipe(network=network)
    assert VocoderRecipe(network=network).network == network
