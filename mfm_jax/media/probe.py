"""Read the length, rate, size and orientation of a video file from its packets."""

from dataclasses import dataclass
from pathlib import Path

from mfm_jax.media.sandbox import sandboxed
from mfm_jax.media.timeline import read_timeline


@dataclass(frozen=True)
class VideoInfo:
    """Length, rate, size and orientation of a video."""

    seconds: float  # from the first frame's beginning to the last one's end
    fps: float  # frames / seconds: the mean, where the rate varies
    frames: int
    width: int  # pixels as displayed, that is after the rotation
    height: int
    rotation: int  # degrees clockwise by which a player turns the stored frames: 0, 90, 180, 270
    has_audio: bool
    mirrored: bool = False  # True if a player swaps left and right before it turns them


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
