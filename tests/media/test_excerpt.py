"""A part of a video: the same frames at the same times, whether it is read or written."""

import numpy as np
import pytest

from mfm_jax.errors import MediaError
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.write import write_excerpt, write_frames
from tests.windows import pair_spec

SPEC = pair_spec(
    seconds=1.28, overlap=0.16, cavp_fps=12.5, cavp_size=16, timechat_frames=8, timechat_size=16
)
FPS, SECONDS = 25, 14


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A video whose frames grow brighter, again every two seconds."""
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    levels = np.arange(FPS * SECONDS) % 50 * 4 + 20
    frames = np.broadcast_to(levels[:, None, None, None], (*levels.shape, 32, 48, 3))
    write_frames(frames.astype(np.uint8), path, fps=FPS)
    return path


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.32, 4.52), (12.48, 13.24), (11.0, 99.0)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_written_is_what_is_read(film, tmp_path, start, end, suffix):
    target = tmp_path / f"b{suffix}"
    length = min(end, SECONDS) - start
    wave = np.sin(np.arange(round(length * 16_000)) / 9).astype(np.float32) / 2
    write_excerpt(film, target, wave, start, end)
    assert probe(target).seconds == pytest.approx(length, abs=0.003)
    heard = read_audio(target)
    assert len(heard) == pytest.approx(len(wave), abs=50)
    assert np.abs(heard[2000 : len(wave) - 2000] - wave[2000:-2000]).max() < 0.05
    wanted, found = list(windows(film, SPEC, start, end=end)), list(windows(target, SPEC))
    assert len(found) == len(wanted)
    for one, other in zip(wanted, found, strict=True):
        assert other.seconds == pytest.approx(one.seconds, abs=0.003)
        for name in one.seen:
            levels = [w.seen[name].pixels.mean(axis=(1, 2, 3)) for w in (one, other)]
            np.testing.assert_allclose(*levels, atol=1.5)
        np.testing.assert_allclose(
            one.seen["timechat"].seconds, other.seen["timechat"].seconds, atol=0.002
        )


def test_nothing_behind_the_end_is_seen(film):
    (window,) = windows(film, SPEC, 1.0, end=1.5)
    assert window.seconds == 0.5
    levels = window.seen["cavp"].pixels.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels[6:], levels[6], atol=1)
    assert levels[6] == pytest.approx(20 + 4 * 37, abs=2)


def test_a_part_that_is_not_there_is_one_line(film, tmp_path):
    with pytest.raises(MediaError, match=r"ends at 14\.00 s: nothing is left from 20 s"):
        write_excerpt(film, tmp_path / "b.mp4", np.zeros(9, np.float32), 20.0, 21.0)
    assert list(tmp_path.iterdir()) == []
