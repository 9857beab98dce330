from functools import partial

import jax
import numpy as np
import pytest

from mfm_jax.foley.scores import BATCH, Contacts, Heard, mel_distance, score_waves
from mfm_jax.foley.world import MATERIALS, World, generate_clip
from mfm_jax.media.audio import RATE
from mfm_jax.models.listener import Listener, ListenerConfig
from mfm_jax.storage.weights import abstract
from tests.bundles import filled

NAMES = tuple(material.name for material in MATERIALS)


def drawn():
    return filled(abstract(partial(Listener, ListenerConfig(NAMES))), 0)


@pytest.fixture(scope="module")
def listener():
    return drawn()


@pytest.fixture(scope="module")
def clips():
    return [generate_clip(World(), seed) for seed in range(12)]


def truth(made):
    events = made.events
    return Contacts(np.array([e.time for e in events]), tuple(e.material for e in events))


def test_the_true_sound_is_heard_where_it_is_and_another_clips_is_not(listener, clips):
    truths, waves = [truth(c) for c in clips], [c.audio for c in clips]
    own = sum(score_waves(listener, waves, truths, waves), Heard()).scores()
    other = sum(score_waves(listener, waves[1:] + waves[:1], truths, waves), Heard()).scores()
    assert own["onset_f1_50"] > 0.9
    assert own["log_mel"] == 0
    assert other["onset_f1_50"] < 0.3
    assert other["log_mel"] > 0.3


def test_scores_do_not_depend_on_what_else_is_scored(listener, clips):
    truths, waves = [truth(c) for c in clips], [c.audio for c in clips]
    together = score_waves(listener, waves, truths, waves)
    alone = [score_waves(listener, [w], [t], [w])[0] for w, t in zip(waves, truths, strict=True)]
    assert together == alone
    assert sum(len(t.times) for t in truths) < BATCH  # which is why the next test is there


def test_more_contacts_than_a_batch(listener):
    times = np.arange(0.2, 40, 0.2)
    wave = np.zeros(RATE * 41, np.float32)
    wave[np.rint(times * RATE).astype(int)] = 0.9
    (heard,) = score_waves(listener, [wave], [Contacts(times, ("wood",) * len(times))], [None])
    assert heard.wide.found > BATCH
    assert heard.wide.f1 > 0.99


def test_silence_names_no_material_and_hits_nothing(listener, clips):
    (heard,) = score_waves(listener, [np.zeros(RATE, np.float32)], [truth(clips[0])], [None])
    assert heard.wide.found == heard.events.hits == heard.named.hits == 0
    assert heard.named.true == 1
    assert heard.scores()["onsets_per_second"] == 0


def test_events_need_the_right_material(clips):
    """With a listener that always says the same, events of that material alone are hits."""
    listener = drawn()
    listener.out.kernel[...] = jax.numpy.zeros_like(listener.out.kernel[...])
    listener.out.bias[...] = jax.nn.one_hot(NAMES.index("wood"), len(NAMES))
    truths, waves = [truth(c) for c in clips], [c.audio for c in clips]
    for heard, its in zip(score_waves(listener, waves, truths, waves), truths, strict=True):
        wood = bool(its.materials) and its.materials[0] == "wood"
        assert heard.events.hits == (heard.wide.hits if wood else 0)
        assert heard.named.hits == int(wood and heard.wide.found > 0)


def test_two_materials_are_both_asked_for(clips):
    """A clip of two materials whose contacts all sound like one has named half of them."""
    listener = drawn()
    listener.out.kernel[...] = jax.numpy.zeros_like(listener.out.kernel[...])
    bias = np.zeros(len(NAMES), np.float32)
    bias[[NAMES.index("wood"), NAMES.index("glass")]] = 5, 4
    listener.out.bias[...] = jax.numpy.asarray(bias)
    strikes = Contacts(np.array([0.5, 1.0]), ("wood", "drum"))
    wave = np.zeros(2 * RATE, np.float32)
    wave[[RATE // 2, RATE]] = 0.9
    (heard,) = score_waves(listener, [wave], [strikes], [None])
    assert (heard.named.hits, heard.named.true) == (1, 2)


def test_the_distance_does_not_hear_what_is_too_quiet():
    rng = np.random.default_rng(0)
    quiet = rng.uniform(-11.5, -6.1, (40, 64))
    assert mel_distance(quiet, np.full((40, 64), -11.5)) == 0
    assert mel_distance(np.full((40, 64), -3.0), quiet) == pytest.approx(3.0)
