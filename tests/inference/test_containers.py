"""The same clip makes the same sound, whatever file it comes in."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from mfm_jax.foley.world import World
from mfm_jax.foley.world import write_clip as write_foley_clip
from mfm_jax.inference.pipeline import VideoToAudio
from mfm_jax.media.audio import RATE
from mfm_jax.media.frames import windows
from mfm_jax.metrics.onsets import detect_onsets, resample
from tests.media.field import FPS, remuxed, with_edits

MIRRORED, TURNED = (-1, 0, 0, 1), (0, 1, -1, 0)


def encoded(
    target: Path, frames: Iterable[np.ndarray], codec: str = "libx264", matrix=None
) -> Path:
    """Write frames nearly without loss."""
    options = {"crf": "1", "bf": "2"} if codec == "libx264" else {"crf": "2", "b": "0"}
    with av.open(str(target), "w") as out:
        track = out.add_stream(codec, rate=FPS, options=options)
        track.width = track.height = World().size
        track.pix_fmt = "yuv420p"
        if matrix is not None:
            a, b, c, d = (n << 16 for n in matrix)
            track.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            out.mux(track.encode(frame))
        out.mux(track.encode())
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, tuple[Path, float]]:
    """Return each file, and where the clip begins in it (s)."""
    folder = tmp_path_factory.mktemp("files")
    plain, other = (write_foley_clip(World(), seed, folder) for seed in (20_000_001, 20_000_003))
    frames, before = (
        [f.to_ndarray(format="rgb24") for f in av.open(str(path)).decode(video=0)]
        for path in (plain, other)
    )
    seconds = len(frames) / FPS
    h264 = encoded(folder / "h264.mp4", frames)
    transport = [encoded(folder / f"{i}.ts", f) for i, f in enumerate((before, frames))]
    joined = folder / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in transport))
    three = encoded(folder / "three.mp4", [*before, *frames, *before])
    return {
        "mp4": (h264, 0.0),
        "mkv": (encoded(folder / "a.mkv", frames), 0.0),
        "webm": (encoded(folder / "a.webm", frames, "libvpx-vp9"), 0.0),
        "mov": (encoded(folder / "a.mov", frames), 0.0),
        "avi with B-frames": (remuxed(h264, folder / "a.avi"), 0.0),
        "ts": (transport[1], 0.0),
        "mirrored": (encoded(folder / "b.mp4", (f[:, ::-1] for f in frames), matrix=MIRRORED), 0.0),
        "turned": (encoded(folder / "c.mp4", map(np.rot90, frames), matrix=TURNED), 0.0),
        "trimmed": (with_edits(three, [(seconds, seconds)]), 0.0),
        "joined": (joined, seconds),
    }


def onsets(wave: np.ndarray) -> np.ndarray:
    """Return the onsets in seconds; the detector's steps of 23 ms are refined by the level."""
    level = np.convolve(wave**2, np.ones(RATE // 200), "same")  # over 5 ms
    found = []
    for onset in detect_onsets(resample(wave, RATE)) / 22_050:
        begin = max(0, round((onset - 0.05) * RATE))
        around = level[begin : begin + RATE // 10]
        found.append((begin + np.argmax(around > around.max() / 4)) / RATE)
    return np.array(found)


def test_a_clip_has_the_onsets_of_the_plain_file_in_any_container(files):
    model = VideoToAudio.open()
    found = {}
    for name, (path, start) in files.items():
        window = next(windows(path, model.spec, start=start, count=1))
        (wave,) = model([window])
        found[name] = onsets(wave)
    plain = found.pop("mp4")
    assert len(plain) >= 3
    for name, times in found.items():
        assert len(times) == len(plain), name
        np.testing.assert_allclose(times, plain, atol=0.02, err_msg=name)
