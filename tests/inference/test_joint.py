"""Windows of a video denoised jointly: the same sound in any company, and one failure is alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mfm_jax
from mfm_jax.errors import UsageError
from mfm_jax.inference.joint import (
    JointNetworks,
    Row,
    Started,
    batch_of,
    joint_latents,
    latent_overlap,
)
from mfm_jax.inference.pipeline import Condition, Sampling, VideoToAudio
from mfm_jax.inference.requests import Request
from mfm_jax.inference.work import Job, Work
from mfm_jax.media.write import write_frames
from tests.bundles import untrained_bundle
from tests.noise import window


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos, of three windows, of one and of two, and a bundle."""
    folder = tmp_path_factory.mktemp("clips")
    rng = np.random.default_rng(0)
    for name, frames in {"a": 160, "b": 50, "c": 90}.items():
        picture = rng.integers(0, 256, (frames, 64, 96, 3), np.uint8)
        write_frames(iter(picture), folder / f"{name}.mp4", fps=25)
    untrained_bundle(folder / "bundle")
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return VideoToAudio.open(folder / "bundle")


def test_a_video_sounds_the_same_in_any_company(folder, tmp_path):
    fast = {"bundle": folder / "bundle", "steps": 2, "batch": 2, "format": "wav", "joint": True}
    videos = [folder / f"{name}.mp4" for name in "abc"]
    mfm_jax.generate(videos[0], tmp_path / "alone", **fast)
    mfm_jax.generate(videos[::-1], tmp_path / "all", **fast)
    assert (tmp_path / "alone/a.wav").read_bytes() == (tmp_path / "all/a.wav").read_bytes()
    mfm_jax.generate(videos[0], tmp_path / "apart", **fast | {"joint": False})
    joint, apart = (soundfile.read(tmp_path / name / "a.wav")[0] for name in ("all", "apart"))
    assert len(joint) == len(apart)
    # The first window begins alike, and only a joint one hears of the second.
    assert np.abs(joint - apart).max() > 1e-2


@pytest.mark.parametrize("sampling", [Sampling("dpm++", 3), Sampling("ddim", 2, eta=1.0)])
def test_latents_agree_where_windows_overlap(model, sampling):
    first, second = (
        Job(Request(Path(name), seed=5), Path(), windows=n) for name, n in (("a", 3), ("b", 1))
    )
    loa = np.random.default_rng(1).normal(size=(4, *_loa_shape(model))).astype(np.float32)
    rows = [Row(first, window(model.spec, i), Condition(loa[i])) for i in range(3)]
    rows.append(Row(second, window(model.spec, 0), Condition(loa[3])))
    groups = [[(row, None, None) for row in rows[at : at + 2]] for at in (0, 2)]
    batches = [batch_of(model, group, 0, None) for group in groups]
    x = np.concatenate([np.asarray(each) for each in joint_latents(model, batches, sampling)])
    shared = latent_overlap(model)
    assert shared == 8
    for i in (0, 1):
        np.testing.assert_allclose(x[i, -shared:], x[i + 1, :shared], atol=1e-6)
    assert np.abs(x[2, -shared:] - x[3, :shared]).max() > 0.1


def _loa_shape(model):
    config = model.networks.mapper.config
    return config.loa.tokens, config.loa_width


def test_a_video_that_fails_is_alone(folder, tmp_path, model):
    """Once while its windows are encoded, and once while they are denoised."""

    def predict(items):
        if any(window.seen["timechat"].pixels.mean() > 200 for _, window in items):
            raise IndexError("too bright")
        return Condition(np.zeros((len(items), 1, 1), np.float32))

    def start(rows, batch):
        if any(row.job.source.name == "c.mp4" for row in rows):
            raise KeyError("odd")
        wave = np.full((len(rows), 1, 40_960), 0.25, np.float32)
        return Started([wave], np.stack([row.read.loa for row in rows]))

    white = np.full((90, 64, 96, 3), 255, np.uint8)
    write_frames(iter(white), tmp_path / "white.mp4", fps=25)
    names = [folder / "a.mp4", tmp_path / "white.mp4", folder / "c.mp4", folder / "b.mp4"]
    jobs = [Job(Request(name), tmp_path / f"{name.stem}.wav") for name in names]
    Work(jobs, model.spec, joint=True).run(lambda: JointNetworks(predict, start), 2)
    assert [bool(job.failed) for job in jobs] == [False, True, True, False]
    assert "too bright" in jobs[1].failed
    assert "odd" in jobs[2].failed
    wave = soundfile.read(tmp_path / "a.wav")[0]
    np.testing.assert_allclose(wave, 0.25, atol=1e-4)  # the fade of equal windows changes nothing


def test_what_cannot_be_denoised_jointly_is_one_line(folder, tmp_path, model):
    uneven = replace(model, spec=replace(model.spec, overlap=0.3))
    with pytest.raises(UsageError, match=r"overlap by 0.3 s .* a multiple of 0.04 s"):
        latent_overlap(uneven)
    with pytest.raises(UsageError, match="memory low makes each window alone"):
        mfm_jax.generate(folder / "a.mp4", tmp_path / "x.wav", joint=True, memory="low")
