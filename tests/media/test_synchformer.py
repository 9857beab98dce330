"""Synchformer's frames and mel against the original front ends, and frames of files."""

from fractions import Fraction

import numpy as np
import pytest

from mfm_jax.errors import MediaError
from mfm_jax.media import audio, sandbox
from mfm_jax.media.scaling import resize_synchformer
from mfm_jax.media.segments import mel_segments, segment_samples, segments
from mfm_jax.media.synchformer_frames import synchformer_frames
from mfm_jax.media.write import write_frames
from tests.media.field import FPS, STEP, write_clip


@pytest.fixture(scope="module")
def mel(reference):
    return np.load(reference / "synchformer/golden/mel.npz")


@pytest.mark.parity
def test_mel(mel, parity):
    wave = mel["wave_int16"].astype(np.float32) / 32768
    ours = mel_segments(wave, segment_samples(16, 25.0))
    theirs = mel["model_input"][:, 0].swapaxes(1, 2)
    parity("Synchformer mel", "golden, max", ours, theirs, 1e-3)
    difference = np.abs(ours - theirs).mean()
    parity("Synchformer mel", "golden, mean", difference, 0.0, 2e-5)
    exact = mel["model_input_float64"][:, 0].swapaxes(1, 2)
    parity("Synchformer mel", "golden in float64", ours, exact, 1e-3)
    # Theirs are float32: half an ulp of 8 kHz over the 15 Hz between two corners.
    parity("Synchformer mel filters", "golden", audio.htk_mel_filters().T, mel["mel_bank"], 3e-5)


def test_a_segment_of_another_length_is_an_error():
    assert audio.synchformer_mel(np.zeros(10_240), 66).shape == (66, 128)
    for samples in (200, 10_720):
        with pytest.raises(ValueError, match=f"{samples} samples does not make 66 columns"):
            audio.synchformer_mel(np.zeros(samples), 66)


def test_segments_overlap_by_half_and_the_rest_is_dropped():
    assert segments(np.arange(23), 8)[:, 0].tolist() == [0, 4, 8, 12]
    assert segments(np.zeros((200, 2)), 16).shape == (24, 16, 2)  # 8 s
    assert segments(np.zeros(int(10.24 * 16_000)), 10_240).shape == (31, 10_240)
    with pytest.raises(ValueError, match="15 are fewer than a segment of 16"):
        segments(np.zeros(15), 16)


@pytest.mark.parity
@pytest.mark.parametrize("number", [0, 1, 2])
def test_geometry(reference, parity, number):
    golden = np.load(reference / "synchformer/golden/preprocess.npz")
    ours = resize_synchformer(golden[f"frame{number}"]).astype(int)
    theirs = golden[f"uint8_{number}"].transpose(1, 2, 0).astype(int)
    parity(f"Synchformer frame {number}", "golden, levels", ours, theirs, 2)
    differ = (ours != theirs).mean()
    parity(f"Synchformer frame {number}", "golden, share of pixels", differ, 0.0, 0.005)


def test_frames_that_are_not_square_are_covered_as_well():
    frame = np.zeros((30, 90, 3), np.uint8)
    frame[:, 30:60] = 200
    assert resize_synchformer(frame, (20, 20)).mean() == pytest.approx(200, abs=2)
    assert resize_synchformer(frame, (20, 60)).mean() == pytest.approx(200 / 3, abs=5)
    assert resize_synchformer(frame.swapaxes(0, 1), (40, 20)).shape == (40, 20, 3)


def shown(frames: np.ndarray) -> list[int]:
    return np.rint((frames.mean(axis=(1, 2, 3)) - 20) / STEP).astype(int).tolist()


def test_frames_of_a_video_from_a_start_on(tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "a.mp4", range(36))
    small = {"image": (16, 16)}
    assert shown(synchformer_frames(clip, 36 / FPS, **small)) == list(range(36))
    assert shown(synchformer_frames(clip, 0.4, 0.8, **small)) == list(range(20, 30))
    assert shown(synchformer_frames(clip, 0.2, 0.43, **small)) == list(range(11, 16))
    with pytest.raises(MediaError, match="has 36 frames at 25 a second from 0 s on, 50 are needed"):
        synchformer_frames(clip, 2.0)
    with pytest.raises(MediaError, match="has 11 frames at 25 a second from 1 s on, 25 are needed"):
        synchformer_frames(clip, 1.0, 1.0)
    monkeypatch.setenv(sandbox.SWITCH, "1")
    assert shown(synchformer_frames(clip, 0.4, 0.8, **small)) == list(range(20, 30))
    vars(sandbox._children).clear()


@pytest.mark.parametrize("rate", [10, 30, 60])
def test_other_rates_are_those_of_the_fps_filter(tmp_path, rate):
    """A slot shows the newest frame whose time `ffmpeg -vf fps=25` rounds to it or before it."""
    count = round(1.2 * rate)
    pixels = [np.full((32, 32, 3), 20 + 3 * i, np.uint8) for i in range(count)]
    write_frames(pixels, tmp_path / "a.mp4", fps=Fraction(rate))
    frames = synchformer_frames(tmp_path / "a.mp4", 1.2, image=(16, 16))
    found = np.rint((frames.mean(axis=(1, 2, 3)) - 20) / 3).astype(int)
    slots = np.floor(np.arange(count) * 25 / rate + 0.5)
    expected = [int(np.flatnonzero(slots <= k)[-1]) for k in range(30)]
    assert found.tolist() == expected
