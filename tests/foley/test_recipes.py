"""The recipes of the frozen networks: what they read of a clip, and what their losses ask."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from mfm_jax.data.decoded import ClipSpec, prepared_wave, samples_of
from mfm_jax.foley.contacts import BEFORE
from mfm_jax.foley.labels import ONSETS
from mfm_jax.foley.recipes.listener import ListenerRecipe, shifted
from mfm_jax.foley.recipes.timechat import TimeChatRecipe, classify
from mfm_jax.foley.world import KINDS, MATERIALS, World, generate_clip
from mfm_jax.media.audio import RATE
from mfm_jax.models.vocoder import Vocoder
from mfm_jax.storage.weights import abstract, initialise
from mfm_jax.train.recipes.vocoder import RESOLUTIONS, VocoderRecipe, mel_loss
from tests.bundles import filled

SPEC = ClipSpec.tiny()
RNG = np.random.default_rng(0)


def element(seed=0, times=None, material=2):
    """A decoded clip as `mfm_jax.data.decoded` stores it."""
    made = generate_clip(World(), seed)
    times = [event.time for event in made.events] if times is None else times
    onsets = np.full(ONSETS, -1, np.float32)
    onsets[: len(times)] = times
    seconds = np.linspace(0, 2.24, SPEC.timechat_frames, dtype=np.float32)
    return {
        "cavp": np.zeros((32, 32, 32, 3), np.uint8),
        "timechat": np.zeros((SPEC.timechat_frames, 64, 64, 3), np.uint8),
        "timechat_seconds": seconds,
        "wave": np.rint(np.pad(made.audio, (0, samples_of(SPEC) - len(made.audio))) * 32767).astype(
            np.int16
        ),
        "materials": np.eye(len(MATERIALS), dtype=np.float32)[material],
        "kinds": np.eye(len(KINDS), dtype=np.float32)[0],
        "onsets": onsets,
        "onset_materials": np.where(onsets >= 0, material, -1).astype(np.int32),
    }


# Names and shares ---------------------------------------------------------------------------------


def test_classify_shares_the_target_among_what_is_present():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((3, 4)).astype(np.float32)
    present = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]], np.float32)
    chances = np.log(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    wanted = -(chances[0, 0] + (chances[1, 1] + chances[1, 2]) / 2) / 2
    error, hits = classify(jnp.asarray(logits), jnp.asarray(present))
    assert error == pytest.approx(wanted, rel=1e-5)
    right = [present[i, logits[i].argmax()] for i in range(2)]
    assert hits == pytest.approx(np.mean(right))


def test_classify_of_nothing_known_is_nothing():
    error, hits = classify(jnp.ones((2, 3)), jnp.zeros((2, 3)))
    assert error == 0
    assert hits == 0


def test_timechat_is_asked_where_the_contacts_are():
    recipe = TimeChatRecipe()
    read = recipe.read(element(times=[0.01, 1.0, 2.55]))
    assert recipe.pieces == 16  # of 160 ms
    np.testing.assert_array_equal(np.flatnonzero(read["in_pieces"]), [0, 6, 15])
    # Frames lie every 320 ms from 0 on.
    np.testing.assert_array_equal(np.flatnonzero(read["in_frames"]), [0, 3, 7])
    none = recipe.read(element(times=[]))
    assert not none["in_pieces"].any()
    assert not none["in_frames"].any()


# The vocoder --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", RESOLUTIONS)
def test_the_mel_loss_is_zero_for_the_same_sound_only(sizes):
    wave = jax.random.normal(jax.random.key(0), (1, 2048)) * 0.4
    distance = jax.jit(lambda made, true: mel_loss(made, true, *sizes))
    assert distance(wave, wave) == 0
    # All of it is far above what is not heard, so half as loud is log 2 away.
    assert distance(wave * 0.5, wave) == pytest.approx(np.log(2), rel=0.05)


def test_a_silent_vocoder_still_has_a_gradient():
    """A floor without one was a trap that a network which fell silent never came out of."""
    t = np.arange(2048, dtype=np.float32) / RATE
    tone = jax.device_put(0.3 * np.sin(2 * np.pi * 880 * t)[None])
    almost = 1e-6 * np.random.default_rng(0).standard_normal(tone.shape, np.float32)
    gradient = jax.jit(jax.grad(lambda made: mel_loss(made, tone, 256, 64, 32)))(almost)
    assert np.linalg.norm(gradient) > 1e-3


def test_the_vocoder_begins_as_loud_as_the_clips():
    recipe = VocoderRecipe()
    source = [recipe.read(element(seed)) for seed in range(3)]
    mels = jnp.asarray(np.stack([s["mel"] for s in source]), jnp.float32)
    true = np.stack([s["wave"] for s in source]).std()
    module, vocode = initialise(recipe.build, 0), jax.jit(Vocoder.__call__)
    assert vocode(module, mels).std() > 5 * true
    louder = recipe.warm_start(module, source)
    assert 0.5 * true < vocode(louder, mels).std() < 2 * true  # tanh bends it


# The listener -------------------------------------------------------------------------------------


def test_the_listener_hears_a_contact_where_its_crop_says():
    recipe, source = ListenerRecipe(), element(times=[0.5, 1.5], material=5)
    read = recipe.read(source)
    wave = prepared_wave(source)
    assert len(read["mel"]) == len(wave) // 160
    made = recipe.eval_transform(read, np.random.default_rng(0))
    assert made["material"] == 5
    start = {0: 50 - BEFORE, 1: 150 - BEFORE}
    parts = [read["mel"][s : s + len(made["crop"])] for s in start.values()]
    assert any(np.array_equal(made["crop"], part.astype(np.float32)) for part in parts)


def test_a_mel_is_shifted_by_bins_and_parts_of_them():
    mel = np.random.default_rng(0).normal(size=(3, 6))
    np.testing.assert_array_equal(shifted(mel, 0.0), mel)
    np.testing.assert_array_equal(shifted(mel, 1.0)[:, 1:], mel[:, :-1])
    np.testing.assert_array_equal(shifted(mel, 1.0)[:, 0], mel[:, 0])
    np.testing.assert_allclose(shifted(mel, -0.5)[:, :-1], (mel[:, 1:] + mel[:, :-1]) / 2)


def test_clips_without_a_contact_teach_the_listener_nothing():
    recipe = ListenerRecipe()
    module, loss = filled(abstract(recipe.build), 0), jax.jit(recipe.loss)
    items = [recipe.eval_transform(recipe.read(element(times=t)), RNG) for t in ([0.5], [])]
    assert [int(item["material"]) for item in items] == [2, -1]
    both = {k: jnp.asarray(np.stack([item[k] for item in items])) for k in items[0]}
    one = {k: value[:1] for k, value in both.items()}
    key = jax.random.key(0)
    assert loss(module, both, key)[0] == pytest.approx(float(loss(module, one, key)[0]), rel=1e-5)


def test_the_listener_is_given_a_louder_or_quieter_crop_in_training():
    recipe, source = ListenerRecipe(jitter=0.0, tilt=0.0, noise=0.0), element()
    read = recipe.read(source)
    still = recipe.eval_transform(read, np.random.default_rng(0))["crop"]
    moved = [recipe.transform(read, np.random.default_rng(seed))["crop"] for seed in range(4)]
    loud = still > -6
    assert loud.any()
    gains = [float(np.median((crop - still)[loud])) for crop in moved]
    assert len(set(gains)) == 4
    assert max(map(abs, gains)) <= recipe.gain + 1e-5
