"""Still videos, and the activity of a sound."""

import numpy as np
import pytest

from mfm_jax.foley.world import World, write_world
from mfm_jax.media.probe import probe
from miniature.robust import read_frames
from miniature.scores import open_clips
from miniature.still import (
    STILL,
    measure_activity,
    moving_clips,
    still,
    still_clips,
    summary,
    unlabelled_clip,
)
from tests.bundles import untrained_bundle


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_world(World(), (20_000_000, 20_000_001), folder)
    return open_clips(folder)


@pytest.mark.parametrize("kind", STILL)
def test_a_still_video_has_its_length_and_is_written_once(clips, tmp_path, kind):
    made = still_clips(kind, clips, 4.0, tmp_path / kind)
    written = [clip.path.stat().st_mtime_ns for clip in made]
    for clip in made:
        info = probe(clip.path)
        assert (info.seconds, info.fps, info.width) == (pytest.approx(4.0), 25.0, 64)
        assert len(clip.wave) == 64_000
        assert not len(clip.truth.times)
    again = still_clips(kind, clips, 4.0, tmp_path / kind)
    assert [clip.path.stat().st_mtime_ns for clip in again] == written


def test_black_is_black_static_does_not_move_and_noise_does(clips, tmp_path):
    frames = {
        kind: np.array(read_frames(still_clips(kind, clips, 1.6, tmp_path / kind)[1].path), float)
        for kind in STILL
    }
    assert frames["black"].max() <= 2
    static = frames["static"]
    middle = np.array(read_frames(clips[1].path)[32], float)
    assert np.abs(static - static[0]).mean() < 1.5
    assert np.abs(static[0] - middle).mean() < 3
    noise = frames["noise"]
    assert np.abs(np.diff(noise, axis=0)).mean() > 30
    other = np.array(read_frames(tmp_path / "noise" / f"{clips[0].path.stem}.mp4"), float)
    assert np.abs(other - noise).mean() > 30


def test_moving_clips_are_the_given_ones_or_longer_ones(clips, tmp_path):
    assert moving_clips(clips, World().seconds, tmp_path) == list(clips)
    (longer,) = moving_clips(clips[:1], 4.0, tmp_path)
    assert probe(longer.path).seconds == pytest.approx(4.0)
    assert longer.truth.times.max() > 2.56


def test_levels_and_rates_of_known_sounds():
    t = np.arange(2 * 16_000) / 16_000
    sine = measure_activity(np.sin(2 * np.pi * 440 * t).astype(np.float32))
    assert sine.level == pytest.approx(-3.01, abs=0.01)
    silence = measure_activity(np.zeros(32_000, np.float32))
    assert (silence.level, silence.rate) == (pytest.approx(-100), 0)
    rng = np.random.default_rng(0)
    blows = np.zeros(32_000, np.float32)
    for second in (0.5, 1.0, 1.5):
        blows[round(second * 16_000) :][:800] = rng.uniform(-0.5, 0.5, 800)
    heard = measure_activity(blows)
    np.testing.assert_allclose(heard.onsets, [0.5, 1.0, 1.5], atol=0.02)
    assert heard.rate == 1.5
    row = summary("x", 2.0, [silence, heard])
    assert (row["onsets_per_second"], row["most_onsets_per_second"]) == (0.75, 1.5)
    assert (row["level"], row["loudest"]) == ((heard.level - 100) / 2, heard.level)


def test_a_bare_clip_is_silence_as_long_as_its_video(clips):
    bare = unlabelled_clip(clips[0].path)
    assert len(bare.wave) == len(clips[0].wave)
    assert not bare.wave.any()


def test_a_row_for_each_kind_and_one_for_the_true_sound(clips, tmp_path):
    bundle = tmp_path / "bundle"
    untrained_bundle(bundle, steps=1, guidance=1.0)
    found = still(bundle, clips, tmp_path / "videos", lengths=(World().seconds,))
    rows = {row["video"]: row for row in found["rows"]}
    assert list(rows) == [*STILL, "moving", "moving, true sound"]
    truth = [measure_activity(clip.wave) for clip in clips]
    assert rows["moving, true sound"] == summary("moving, true sound", World().seconds, truth)
    assert rows["moving, true sound"]["onsets_per_second"] > 0
    levels = {name: row["level"] for name, row in rows.items()}
    assert len(set(levels.values())) == 5  # each was listened to itself
    (table,) = found["tables"]
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}
