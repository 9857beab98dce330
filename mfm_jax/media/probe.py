"""Read the length, rate, size and orientation of a video file from its packets."""

from pathlib import Path

from mfm_jax.media.sandbox import sandboxed
from mfm_jax.media.timeline import read_timeline
from mfm_jax.media.video_info import VideoInfo


@sandboxed
def probe(path: Path) -> VideoInfo:
    """Read a video's length, rate, size and orientation in one pass over its packets.

    Raises:
        MediaError: the file is missing, empty, damaged, cut short, or not a video.
    """
    line = read_timeline(path)
    width, height = line.width, line.height
    if line.orientation.transpose:
        width, height = height, width
    frames, seconds = len(line.pts), line.seconds
    rotation, mirrored = line.orientation.rotation, line.orientation.mirrored
    return VideoInfo(
        seconds, frames / seconds, frames, width, height, rotation, line.has_audio, mirrored
    )
