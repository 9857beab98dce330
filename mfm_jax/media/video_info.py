"""What is known of a video without decoding it."""

from dataclasses import dataclass


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
