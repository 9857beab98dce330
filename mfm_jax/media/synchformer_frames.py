"""Read the frames of a video as Synchformer reads them: 25 a second, scaled and cut to a square.

Rate and geometry are those of MMAudio and av-benchmark, which DeSync is defined on. In its training
Synchformer cuts its square out of frames that are 256 pixels high instead.
"""

from pathlib import Path

import numpy as np

from mfm_jax.errors import MediaError
from mfm_jax.media.frames import decoded_frames
from mfm_jax.media.sandbox import sandboxed
from mfm_jax.media.scaling import as_rgb, resize_synchformer
from mfm_jax.media.timeline import read_timeline
from mfm_jax.media.windows import cavp_frame_indices
from mfm_jax.typing import UInt8


@sandboxed
def synchformer_frames(
    path: Path,
    seconds: float,
    start: float = 0.0,
    fps: float = 25.0,
    image: tuple[int, int] = (224, 224),
) -> UInt8[np.ndarray, "T height width 3"]:
    """Return `int(fps * seconds)` frames of a video from `start` (s) on, as ffmpeg's `fps` does.

    A second of 224 x 224 pixels takes 3.8 MB.

    Raises:
        MediaError: as `probe`; also if the video ends before. No frame is repeated, because DeSync
            is not defined beyond the end of a video.
    """
    line = read_timeline(path, start, start + seconds)
    count = int(fps * seconds + 1e-9)
    there = max(0, int(np.floor((line.seconds - start) * fps + 0.5 + 1e-9)))
    if count > there:
        raise MediaError(
            f"{path} has {there} frames at {fps:g} a second from {start:g} s on, {count} are "
            "needed: take a longer video, or fewer seconds of all"
        )
    times = line.times - start
    near = max(0, int(np.searchsorted(times, 1e-6, side="right")) - 1)
    picked = near + cavp_frame_indices(times[near:], fps, count)
    frames = np.empty((count, *image, 3), np.uint8)
    for number, frame in decoded_frames(path, line, int(picked[0])):
        if (slots := picked == number).any():
            upright = line.orientation.apply(as_rgb(frame))
            frames[slots] = resize_synchformer(upright, image)
        if number >= picked[-1]:
            break
    return frames
