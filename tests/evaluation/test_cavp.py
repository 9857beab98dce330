"""CAVP's scores reach the report, with small towers of random weights."""

import numpy as np
import pytest

from mfm_jax.bundle import Source, write_bundle
from mfm_jax.evaluation.cavp import compare, pieces, why_not
from mfm_jax.evaluation.clips import Sound
from mfm_jax.evaluation.evaluate import evaluate
from mfm_jax.evaluation.measure import Wave
from mfm_jax.media.audio import cavp_mel, write_sound
from mfm_jax.media.write import write_frames
from mfm_jax.models.cavp import CAVPConfig
from tests.bundles import CONFIGS, untrained_component

RATE = 16_000
TOWERS = {name: untrained_component(name, CONFIGS["cavp"], 3) for name in ("cavp", "cavp_audio")}
NAMES = ("a", "b", "c")
KEYS = ("cavp_cosine", "cavp_moments", "cavp_recall")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Videos of 1.6 s and one of 4 s, their sounds alone, and those of the next clip."""
    folder, rng = tmp_path_factory.mktemp("cavp"), np.random.default_rng(0)
    waves = {}
    for name, seconds in zip(NAMES, (1.6, 4.0, 1.6), strict=True):
        frames = rng.integers(0, 255, (round(25 * seconds), 32, 32, 3), np.uint8)
        turns = 200 * 3 ** len(waves) * np.arange(round(seconds * RATE)) / RATE
        waves[name] = 0.5 * np.sin(2 * np.pi * turns).astype(np.float32)
        (folder / "real").mkdir(exist_ok=True)
        write_frames(iter(frames), folder / "real" / f"{name}.mp4", fps=25, wave=waves[name])
    for side in ("same", "other"):
        (folder / side).mkdir()
        for i, name in enumerate(NAMES):
            wave = waves[name if side == "same" else NAMES[(i + 1) % 3]]
            write_sound(folder / side / f"{name}.wav", np.resize(wave, len(waves[name])))
    return folder


def test_all_sides_are_heard_with_the_same_picture(folder, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", TOWERS)
    assert why_not(bundle) is None
    sides = [f"same={folder}/same", f"other={folder}/other"]
    report = evaluate(sides, folder / "real", tmp_path / "report", bundle=bundle.path, batch=2)
    assert "CAVP cosine and retrieval" not in dict(report.not_computed)
    for clip in report.clips:
        real, same, other = (clip.scores[side] for side in ("reference", "same", "other"))
        for key in KEYS[:2]:
            assert -1 <= real[key] <= 1
            # AAC and 16 bits are what differs.
            assert same[key] == pytest.approx(real[key], abs=0.01)
            assert other[key] != same[key]
    # The pieces of a clip by themselves give the scores that they give in batches.
    (config, video, _), (_, audio, _) = TOWERS.values()
    files = ("real/b.mp4", "same/b.wav", "other/b.wav")
    waves = [Wave.read(Sound(folder / file)).at_16k for file in files]
    cut = list(pieces(config, Sound(folder / "real/b.mp4"), waves, 4.0))
    frames, mels = np.stack([p.frames for p in cut]), np.stack([p.mels for p in cut])
    steps = np.array([p.steps for p in cut], np.int32)
    found = compare(video, audio, frames, mels, steps)
    moments = np.average(found.moments, axis=0, weights=steps)
    (clip,) = (clip for clip in report.clips if clip.name == "b")
    scores = [clip.scores[side]["cavp_moments"] for side in ("reference", "same", "other")]
    np.testing.assert_allclose(scores, moments, atol=1e-5)
    figures = report.figures
    assert [figures[side]["cavp_recall"].n for side in ("same", "other", "reference")] == [3] * 3
    assert {"cavp", "cavp_audio"} <= report.protocol["bundle"]["components"].keys()


def test_a_bundle_without_both_towers_says_so(tmp_path):
    assert why_not(None) == "no bundle is given: name one with --bundle"
    bundle = write_bundle(tmp_path, {"cavp": TOWERS["cavp"]})
    assert "has no audio tower of CAVP (cavp_audio)" in str(why_not(bundle))
    other = (*TOWERS["cavp_audio"][:2], Source("another command", "none"))
    assert "come from different files" in str(
        why_not(write_bundle(tmp_path, {"cavp_audio": other}))
    )


def test_sounds_without_a_video_have_no_scores(folder, tmp_path):
    bundle = write_bundle(tmp_path / "bundle", TOWERS)
    report = evaluate(folder / "same", folder / "other", tmp_path / "report", bundle=bundle.path)
    assert dict(report.not_computed)["CAVP cosine and retrieval"] == "no side has videos"
    assert "cavp_cosine" not in report.figures["same"]


def test_clips_are_cut_into_pieces_of_which_the_last_may_be_half_full(folder):
    """Of 32 moments, 2.56 s; 4 s are one and 0.56 of the second."""
    config, wave = CAVPConfig.tiny(), np.random.default_rng(1).standard_normal(8 * RATE)
    picture = Sound(folder / "real" / "b.mp4")
    found = {
        seconds: list(pieces(config, picture, [wave, -wave], seconds))
        for seconds in (1.0, 3.5, 4.0)
    }
    assert {seconds: [p.steps for p in its] for seconds, its in found.items()} == {
        1.0: [13], 3.5: [32], 4.0: [32, 18],
    }  # fmt: skip
    second = found[4.0][1]
    assert second.frames.shape == (32, 32, 32, 3)
    np.testing.assert_array_equal(second.frames[-1], second.frames[18])  # the last one stays on
    size = round(2.56 * RATE)
    np.testing.assert_array_equal(second.mels[0], cavp_mel(wave[size : 2 * size], config.hop))
