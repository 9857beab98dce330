"""AV-Align against TempoTokens' script.

The stored motion comes from OpenCV's Farneback flow on decoded frames, which are not built here:
tests start from its magnitudes. Entry 0 of the stored trajectory repeats entry 1.
"""

import json

import numpy as np
import pytest

from mfm_jax.metrics import av_align, onsets


@pytest.fixture(scope="module")
def clips(reference):
    """Golden, motion between frames, and sound at 22050 Hz, of each clip."""
    folder = reference / "metrics"
    rows = json.loads((folder / "av_align.json").read_text())["per_clip"]
    flow = np.load(folder / "av_align_arrays.npz")
    stored = np.load(folder / "clips.npz")
    assert [row["fps"] for row in rows] == stored["video_fps"].tolist()
    sound = [onsets.resample(w.astype(np.float32) / 32768, 16_000) for w in stored["video_audio"]]
    return [(row, flow[f"flow_v0{i}"][1:], sound[i]) for i, row in enumerate(rows)]


@pytest.mark.parity
def test_peaks(clips, parity):
    assert [len(flow) + 1 for _, flow, _ in clips] == [row["frames"] for row, *_ in clips]
    video = [av_align.video_peaks_published(flow, row["fps"]) for row, flow, _ in clips]
    audio = [av_align.audio_peaks(wave) for *_, wave in clips]
    for ours, key in ((video, "video_peaks_s"), (audio, "audio_peaks_s")):
        assert [len(p) for p in ours] == [len(row[key]) for row, *_ in clips]
        theirs = np.concatenate([row[key] for row, *_ in clips])
        parity(f"AV-Align {key}", "TempoTokens, 6 videos", np.concatenate(ours), theirs, 1e-12)


@pytest.mark.parity
def test_alignment(reference, clips, parity):
    scores: list = []
    for row, flow, wave in clips:
        video = av_align.video_peaks_published(flow, row["fps"])
        scores.append(av_align.alignment(av_align.audio_peaks(wave), video, row["fps"]))
    theirs = [row["iou"] for row, *_ in clips]
    parity("AV-Align", "TempoTokens, 6 videos", scores, theirs, 0)
    mean = json.loads((reference / "metrics/av_align.json").read_text())["mean"]
    parity("AV-Align, mean", "TempoTokens, 6 videos", sum(scores) / 6, mean, 1e-12)


def test_each_video_peak_is_matched_once():
    peaks = np.array([1.0])
    assert av_align.alignment(np.array([0.98, 1.0, 1.02]), peaks, 25.0) == pytest.approx(1 / 3)
    assert av_align.alignment(peaks, peaks, 25.0) == 1.0
    assert av_align.alignment(peaks, np.zeros(0), 25.0) == 0.0


def test_faint_motion_and_plateaus_have_no_peaks():
    assert not len(av_align.video_peaks(np.array([0.0, 0.09, 0.0]), 25.0))
    assert not len(av_align.video_peaks(np.array([0.0, 1.0, 1.0, 0.0]), 25.0))
    assert av_align.video_peaks(np.array([0.0, 0.1, 0.0]), 25.0).tolist() == [2 / 25]
    assert not len(av_align.video_peaks(np.zeros(0), 25.0))
    assert not len(av_align.video_peaks_published(np.zeros(0), 25.0))
