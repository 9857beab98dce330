"""All windows of long videos become clips, with the frames and the sound that generation cuts."""

import numpy as np

from mfm_jax.data.clips import Clip
from mfm_jax.data.decoded import every_window, first_window
from mfm_jax.media.frames import windows
from mfm_jax.media.write import write_frames
from tests.windows import pair_spec

SPEC = pair_spec(
    seconds=1.28, overlap=0.16, cavp_fps=12.5, cavp_size=16, timechat_frames=4, timechat_size=16
)


def test_every_window_of_a_long_clip_and_the_only_one_of_a_short_or_broken_one(tmp_path):
    rate = 16_000
    for name, seconds in (("long", 4.2), ("short", 0.8)):
        levels = np.linspace(0, 250, round(25 * seconds))[:, None, None, None]
        frames = np.broadcast_to(levels, (len(levels), 32, 32, 3)).astype(np.uint8)
        wave = np.linspace(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
        write_frames(iter(frames), tmp_path / f"{name}.mp4", fps=25, wave=wave)
    names = ("bad", "long", "short")
    clips = [Clip(name, tmp_path / f"{name}.mp4") for name in names]
    late = Clip("late", tmp_path / "long.mp4", start=1.0)
    found = every_window([*clips, late], SPEC)
    # The fourth window of the long one shows 0.84 s, and is kept. Of the late one
    # the third shows 0.96 s.
    assert [clip.id for clip in found] == [
        "bad", "long", "long@1.12", "long@2.24", "long@3.36", "short",
        "late", "late@2.12", "late@3.24",
    ]  # fmt: skip
    whole = list(windows(tmp_path / "long.mp4", SPEC))
    for clip, window in zip(found[1:5], whole, strict=True):
        seen, _ = first_window(clip, SPEC)
        np.testing.assert_array_equal(seen.seen["cavp"].pixels, window.seen["cavp"].pixels)
        np.testing.assert_array_equal(seen.seen["timechat"].pixels, window.seen["timechat"].pixels)
    (last,) = every_window([Clip("x", tmp_path / "long.mp4", start=3.0)], SPEC)
    assert (last.id, last.start) == ("x", 3.0)
