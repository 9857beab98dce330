"""The sound in the file: its rate, its loudness, and the video's own sound under it."""

import numpy as np
import pytest
import soundfile

import mfm_jax
from mfm_jax.errors import UsageError
from mfm_jax.inference.finishing import Finishing
from mfm_jax.inference.requests import Request
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.audio import level
from mfm_jax.media.loudness import loudness
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.write import write_frames
from mfm_jax.runtime.progress import Progress
from tests.inference.stand_in import networks
from tests.windows import pair_spec

SPEC = pair_spec(seconds=1.28, overlap=0.16, cavp_size=16, timechat_frames=2, timechat_size=16)
SECONDS = 2.0


def tone(hz, seconds, rate=16_000, height=0.2):
    return (height * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def strength(wave, hz, rate):
    """Return the height of a tone in a sound."""
    turning = np.exp(-2j * np.pi * hz * np.arange(len(wave)) / rate)
    return 2 * abs(np.mean(wave * turning))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A second of silence and a second of 700 Hz at 44.1 kHz."""
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    own = np.concatenate([np.zeros(44_100, np.float32), tone(700, 1.0, 44_100)])
    write_frames(iter(np.zeros((50, 32, 32, 3), np.uint8)), path, fps=25, wave=own, rate=44_100)
    return path


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("suffix", [".wav", ".flac", ".mp4", ".webm"])
def test_a_file_of_any_rate(video, tmp_path, rate, suffix):
    job = Job(Request(video, end=1.0 if suffix == ".mp4" else None), tmp_path / f"b{suffix}")
    work = Work([job], SPEC, Progress(None, "clips"), finishing=Finishing(rate))
    work.run(lambda: networks(lambda items: np.stack([tone(440, 1.28)] * len(items))), 2)
    assert job.failed is None
    if suffix in (".wav", ".flac"):
        wave, found = soundfile.read(job.target)
        assert (found, len(wave)) == (rate, 2 * rate)
    else:
        wave = read_audio(job.target, rate)
    assert strength(wave[: rate // 2], 440, rate) == pytest.approx(0.2, rel=0.05)


def test_the_own_sound_lies_under_the_new_one_at_its_place(video):
    wave, notes = Finishing(24_000, mix=-6.0)(tone(440, SECONDS), video, 0.0)
    assert notes == []
    first, second = wave[:23_000], wave[25_000:]
    assert strength(first, 700, 24_000) < 0.002
    assert strength(second, 700, 24_000) == pytest.approx(0.1, rel=0.05)
    assert strength(second, 440, 24_000) == pytest.approx(0.2, rel=0.02)
    later, _ = Finishing(16_000, mix=0.0)(tone(440, 0.5, height=0.95), video, 1.25)
    assert np.abs(later).max() == pytest.approx(1.0)
    assert strength(later, 700, 16_000) == pytest.approx(0.2 / 1.15, rel=0.05)


def test_loudness_is_that_of_the_whole_and_a_target_that_cannot_be_reached_is_told(video):
    wave, notes = Finishing(48_000, lufs=-23.0, mix=-20.0)(tone(440, SECONDS), video, 0.0)
    assert loudness(wave, 48_000) == pytest.approx(-23, abs=0.1)
    assert notes == []
    clicks = np.zeros(32_000, np.float32)
    clicks[::8000] = 0.3
    wave, (note,) = Finishing(lufs=-10.0)(clicks, video, 0.0)
    assert np.abs(wave).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)
    assert "LUFS and not -10" in note
    silent, (note,) = Finishing(lufs=-10.0)(np.zeros(9000, np.float32), video, 0.0)
    assert level(silent) == -100
    assert "too short or too quiet" in note


def test_a_video_without_sound_says_so(tmp_path):
    write_frames(iter(np.zeros((25, 32, 32, 3), np.uint8)), tmp_path / "a.mp4", fps=25)
    wave, notes = Finishing(mix=-6.0)(tone(440, 1.0), tmp_path / "a.mp4", 0.0)
    np.testing.assert_array_equal(wave, tone(440, 1.0))
    assert notes == ["the video has no sound of its own to mix in"]


@pytest.mark.parametrize("wrong", [{"rate": 8000}, {"lufs": 3}, {"lufs": -99}, {"mix": 6}])
def test_what_makes_no_sense_is_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match=f"^{next(iter(wrong))} must be"):
        mfm_jax.generate(tmp_path / "a.mp4", tmp_path / "b.wav", **wrong)
