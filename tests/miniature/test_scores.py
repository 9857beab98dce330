"""Every way of making sound for clips, and the table of scores."""

import dataclasses

import numpy as np
import pytest

from mfm_jax.bundle import write_bundle
from mfm_jax.foley.contacts import Counts
from mfm_jax.foley.scores import Heard
from mfm_jax.foley.world import World, write_world
from mfm_jax.inference.pipeline import Sampling
from mfm_jax.storage.paths import TINY_BUNDLE
from miniature.scores import Row, normalised, open_clips, table
from miniature.sounds import Synthesiser
from tests.bundles import untrained_bundle


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Return three clips of one window, and a clip of several windows from another folder."""
    folder = tmp_path_factory.mktemp("clips")
    write_world(World(), (20_000_000, 20_000_001, 20_000_002), folder / "short")
    write_world(dataclasses.replace(World(), seconds=5.0), (20_000_003,), folder / "long")
    return open_clips(folder / "short") + open_clips(folder / "long")


@pytest.fixture(scope="module")
def synthesiser(tmp_path_factory):
    bundle = untrained_bundle(tmp_path_factory.mktemp("bundle") / "untrained")
    return Synthesiser.open(bundle.path, Sampling(steps=2))


def test_clips_are_opened_with_what_they_show(clips):
    assert [clip.path.stem for clip in clips] == [str(20_000_000 + i) for i in range(4)]
    for clip in clips:
        assert len(clip.truth.times) == len(clip.truth.materials)
        assert np.abs(clip.wave).max() == pytest.approx(0.5, abs=1e-3)


def test_a_sound_is_as_long_as_its_clip_and_does_not_depend_on_the_others(clips, synthesiser):
    batch = list(synthesiser.sounds(clips, "vocoder"))
    assert [len(wave) for wave in batch] == [len(clip.wave) for clip in clips]
    alone = list(synthesiser.sounds(clips[3:], "vocoder"))
    np.testing.assert_allclose(alone[0], batch[3], atol=1e-5)


def test_real_sound_is_the_clips_own(clips, synthesiser):
    for wave, clip in zip(synthesiser.sounds(clips, "real"), clips, strict=True):
        np.testing.assert_array_equal(wave, clip.wave)


@pytest.mark.slow
def test_the_noise_of_a_clip_is_given_by_its_place_and_the_seed(clips, synthesiser):
    made = list(synthesiser.sounds(clips[:2], "video", seed=3))
    again = list(synthesiser.sounds(clips[:2], "video", seed=3))
    other = list(synthesiser.sounds(clips[:1], "video", seed=4))
    np.testing.assert_array_equal(made[0], again[0])
    assert np.abs(made[0] - other[0]).max() > 1e-4


def heard(hits: int, found: int, true: int) -> Heard:
    counts = Counts(hits, found, true)
    return Heard(counts, counts, counts, Counts(1, 1, 1), 0.1, 1, 2.56)


def test_the_table_places_the_video_between_the_floor_and_the_ceiling():
    kinds = ["bounce", "roll"]
    rows = [
        Row("video", [heard(3, 4, 4), heard(0, 1, 2)], kinds),
        Row("shuffled", [heard(1, 4, 4), heard(0, 1, 2)], kinds),
        Row("loa", [heard(4, 4, 4), heard(1, 1, 2)], kinds),
    ]
    made = table(rows)
    assert made["video"]["event_f1"] == pytest.approx(6 / 11)  # over all contacts, not over clips
    assert made["video"]["bounce"]["event_f1"] == pytest.approx(0.75)
    assert made["video"]["roll"]["event_f1"] == 0
    assert made["normalised"]["event_f1"] == pytest.approx((6 - 2) / (10 - 2))
    assert "onsets_per_second" not in made["normalised"]
    assert "normalised" not in table(rows[:2])


def test_normalising_between_equal_bounds_is_undefined():
    assert np.isnan(normalised(0.5, 0.3, 0.3))
    assert normalised(0.2, 0.9, 0.1) == pytest.approx(0.875)  # where less is better


def test_a_bundle_without_what_the_ceilings_need_is_named(tmp_path):
    from mfm_jax.bundle import Bundle, BundleError

    full = Bundle.open(TINY_BUNDLE)
    few = {n: (full.config(n), full.load(n), full.entries[n].source) for n in ("vae", "vocoder")}
    write_bundle(tmp_path / "few", few, settings=full.settings)
    with pytest.raises(BundleError):
        Synthesiser.open(tmp_path / "few")
