"""Known shifts of picture and sound, and how closely a score follows them."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

from mfm_jax.foley.world import World, write_world
from mfm_jax.models.synchformer import SyncConfig, Synchformer, SynchformerConfig
from miniature import desync
from miniature.desync import SHIFTS, Cut, Found, Parts, correlation, mean, measure, summary, tables
from miniature.document import markdown
from miniature.scores import open_clips
from tests.metrics.test_desync import SIZES, SMALL

TINY = SynchformerConfig.tiny()


def test_a_sound_is_early_by_the_shift_and_both_parts_lie_in_the_clip():
    parts = Parts(TINY, 2.56)
    assert (parts.frames, parts.seconds) == (40, 1.6)
    assert parts.cut(0.0) == Cut(12, 7680)
    for shift in SHIFTS:
        frame, sample = parts.cut(shift)
        assert sample / 16_000 - frame / 25 == pytest.approx(shift)
        for start in (frame / 25, sample / 16_000):
            assert 0 <= start <= 0.96 + 1e-6
    with pytest.raises(ValueError, match="too short for a shift of 1 s"):
        parts.cut(1.0)


def test_every_sound_is_compared_at_every_shift(tmp_path, monkeypatch):
    """The parts are those that DeSync itself would read there."""
    monkeypatch.setattr(desync, "BATCH", 4)
    write_world(World(), (20_000_000, 20_000_001, 20_000_002), tmp_path)
    clips = open_clips(tmp_path)
    config = replace(SMALL, sync=SyncConfig(2, **SIZES, offsets=17, largest=0.8))
    network = jax.jit(lambda: Synchformer(config, rngs=nnx.Rngs(0)))()
    real = [clip.wave for clip in clips]
    sides = {"real": real, "shuffled": real[1:] + real[:1]}
    found = measure(network, clips, sides, (-0.2, 0.0, 0.8))
    again = measure(network, clips[1:], {"real": real[1:]}, (0.8,))
    np.testing.assert_array_equal(found.offsets["real"][2:, 1:], again.offsets["real"])
    np.testing.assert_array_equal(np.abs(found.offsets["shuffled"]), found.desync["shuffled"])
    assert found.contact.shape == (3, 3)
    result = summary(config, found)
    assert len(result["rows"]) == 6
    assert [len(table["rows"]) for table in tables(config, result)] == [3, 3, 2]
    assert all(markdown(table) for table in tables(config, result))


def perfect(shifts, clips, contact=True):
    offsets = np.repeat(np.array(shifts)[:, None], clips, axis=1)
    sides = {"real": offsets, "shuffled": np.zeros_like(offsets)}
    sizes = {side: np.abs(its) for side, its in sides.items()}
    return Found(tuple(shifts), sides, sizes, np.full(offsets.shape, contact))


def test_a_perfect_network_follows_the_shift_and_a_deaf_one_does_not():
    result = summary(TINY, perfect(SHIFTS, 5))
    rows = {(row["side"], row["shift"]): row for row in result["rows"]}
    real, deaf = rows["real", 0.4], rows["shuffled", 0.4]
    assert real["desync"] == pytest.approx({"value": 0.4, "low": 0.4, "high": 0.4})
    assert (real["right"], real["within_one"], real["within_one_with_contact"]) == (1, 1, 1)
    assert (deaf["right"], deaf["within_one"], deaf["offset"]["value"]) == (0, 0, 0)
    follows = result["correlations"]
    assert follows["real"]["offset"]["value"] == pytest.approx(1)
    assert follows["real"]["desync"]["low"] == pytest.approx(1)
    assert follows["shuffled"]["offset"] == {"value": 0, "low": 0, "high": 0}


def test_intervals_hold_the_value_and_shrink_with_more_clips():
    rng = np.random.default_rng(0)
    few, many = (mean(rng.normal(0.3, 1.0, size=count)) for count in (20, 2000))
    for found in (few, many):
        assert found.low < found.value < found.high
    assert many.high - many.low < (few.high - few.low) / 5
    noisy = np.array(SHIFTS)[:, None] + rng.normal(0, 0.5, size=(len(SHIFTS), 100))
    found = correlation(SHIFTS, noisy)
    expected = np.corrcoef(np.repeat(SHIFTS, 100), noisy.reshape(-1))[0, 1]
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high
