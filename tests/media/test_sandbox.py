"""A file may crash, block or fill the process that decodes it, but no other."""

import io
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from mfm_jax.errors import MediaError
from mfm_jax.media import sandbox
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.write import write_video
from tests.media.field import SMALL, write_clip


@pytest.fixture
def clip(tmp_path) -> Path:
    return write_clip(tmp_path / "a.mp4", range(36), [0.3, 1.2])


@pytest.fixture
def boxed(monkeypatch):
    monkeypatch.setenv(sandbox.SWITCH, "1")
    yield
    vars(sandbox._children).clear()


def everything(path: Path, target: Path):
    """Return what is read of a file and written from it."""
    notes = write_video(path, target, np.zeros(23_040, np.float32))
    return probe(path), list(windows(path, SMALL)), read_audio(path), target.read_bytes(), notes


def test_the_sandbox_reads_and_writes_the_same(clip, tmp_path, request):
    outside = everything(clip, tmp_path / "b.mp4")
    request.getfixturevalue("boxed")
    inside = everything(clip, tmp_path / "b.mp4")
    assert sandbox._children.child.process.poll() is None
    assert inside[0] == outside[0]
    for ours, theirs in zip(inside[1], outside[1], strict=True):
        assert (ours.index, ours.start, ours.seconds) == (
            theirs.index,
            theirs.start,
            theirs.seconds,
        )
        np.testing.assert_array_equal(ours.seen["cavp"].pixels, theirs.seen["cavp"].pixels)
        np.testing.assert_array_equal(
            ours.seen["timechat"].seconds, theirs.seen["timechat"].seconds
        )
    np.testing.assert_array_equal(inside[2], outside[2])
    assert inside[3:] == outside[3:]
    with pytest.raises(MediaError, match="does not exist"):
        probe(tmp_path / "missing.mp4")
    # A generator that is left early does not disturb what follows.
    assert next(windows(clip, SMALL)).index == 0
    assert [w.index for w in windows(clip, SMALL)] == [0, 1]
    # Several may run side by side.
    pairs = zip(windows(clip, SMALL), windows(clip, SMALL, start=0.2), strict=True)
    assert [(one.start, other.start) for one, other in pairs] == [(0.0, 0.2), (1.0, 1.2)]


def test_a_crash_or_a_block_fails_one_file(clip, boxed, monkeypatch):
    assert probe(clip).frames == 36
    made = windows(clip, SMALL)
    assert next(made).index == 0
    os.kill(sandbox._children.child.process.pid, signal.SIGSEGV)
    with pytest.raises(MediaError, match=r"a\.mp4 cannot be decoded \(its decoder fails\)"):
        list(made)
    assert probe(clip).frames == 36
    os.kill(sandbox._children.child.process.pid, signal.SIGSTOP)
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
    with pytest.raises(MediaError, match=r"its decoder takes more than 0\.2 s"):
        probe(clip)


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 8 + b"{}",
        json.dumps({"object": "Popen", "fields": {"args": ["touch", "x"]}}).encode(),
        json.dumps({"dict": {"value": {"array": "object", "shape": [1]}}}).encode(),
        json.dumps({"dict": {"value": {"array": "uint8", "shape": [1 << 40]}}}).encode(),
        json.dumps({"dict": {"value": {"array": "uint8", "shape": [-1]}}}).encode(),
    ],
)
def test_a_child_is_not_believed(message):
    framed = message if not message.startswith(b"{") else len(message).to_bytes(8, "big") + message
    with pytest.raises((ValueError, EOFError, KeyError)):
        sandbox.receive(io.BytesIO(framed))
