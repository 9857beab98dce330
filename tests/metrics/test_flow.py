"""Farneback's flow is OpenCV's, and known movements have known lengths."""

import numpy as np
import pytest

from mfm_jax.metrics.flow import grey, mean_flow


@pytest.mark.parity
def test_it_is_opencvs(reference, parity):
    with np.load(reference / "metrics/av_align_arrays.npz") as file:
        arrays = dict(file)
    ours = np.concatenate([mean_flow(arrays[f"gray_v0{i}"]) for i in (0, 5)])
    theirs = np.concatenate([arrays[f"flow_v0{i}"][1:] for i in (0, 5)])
    parity("optical flow, mean length", "OpenCV 5.0 Farneback, 2 videos", ours, theirs, 1e-3)


@pytest.mark.parametrize("shape", [(48, 96), (96, 40)], ids=["wide", "tall"])
def test_a_texture_that_moves_is_measured(shape):
    y, x = np.mgrid[: shape[0], : shape[1]]

    def texture(moved):
        return (120 + 60 * np.sin((x - moved) / 5.0) + 60 * np.cos(y / 4.0)).astype(np.uint8)

    still, moved = mean_flow([texture(0), texture(0), texture(1)])
    assert still == pytest.approx(0, abs=0.02)  # edges have a little
    assert moved == pytest.approx(1.0, abs=0.1)


def test_no_frame_and_one_have_no_motion():
    assert len(mean_flow([])) == len(mean_flow([np.zeros((40, 40), np.uint8)])) == 0


def test_grey_is_that_of_opencv():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert grey(colours).tolist() == [[76, 150, 29]]
