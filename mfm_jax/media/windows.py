"""Cut a video into windows, and choose the frames that each encoder sees.

Nothing here reads a file, so that generation needs no video library.
"""

from dataclasses import dataclass, replace

import numpy as np

from mfm_jax.typing import Float, Int, UInt8

SLACK = 0.05
"""Seconds at the end of a video that get no extra window. At another frame rate the same clip is up
to half a frame longer, and a window for that would show nothing but the last frame."""


def cavp_frame_indices(
    times: Float[np.ndarray, " frames"], fps: float | int, count: int
) -> Int[np.ndarray, " {count}"]:
    """Return the frames that ffmpeg's `fps` filter (round=near) puts in the first `count` slots.

    Slot `k` gets the newest frame whose time, rounded to whole slots with halves up, is at most
    `k`; the first frame where there is none, and the last one after the video's end.
    """
    # The small term makes a half of a time that is not a binary fraction still count as a half.
    slots = np.floor(times * fps + 0.5 + 1e-9)
    return np.maximum(np.searchsorted(slots, np.arange(count), side="right") - 1, 0)


def cavp_frame_seconds(
    times: Float[np.ndarray, " frames"], picked: Int[np.ndarray, " T"], fps: float | int
) -> Float[np.ndarray, " T"]:
    """Return the time in seconds that each slot of CAVP shows, given the frames picked for them.

    The filter gives a slot the last of several frames, which may lie up to half a slot later; the
    higher the frame rate, the likelier (30 ms at 60 fps, for 12.5 slots a second). So a token
    carries the time of its frame, clipped to half a slot around its slot: tokens of a frame that is
    held for several slots stay apart.
    """
    slots = np.arange(len(picked)) / fps
    return np.clip(times[picked], np.maximum(slots - 0.5 / fps, 0.0), slots + 0.5 / fps)


def timechat_frame_indices(frames: int, count: int) -> Int[np.ndarray, " picked"]:
    """Pick `min(count, frames)` frames evenly from a file of `frames`, as TimeChat does."""
    picked = min(count, frames)
    # Rounding lets the original's arange give one too many for some counts, though not for 96.
    return np.arange(0, frames, frames / picked).astype(np.int64)[:picked]


@dataclass(frozen=True)
class WindowSpec:
    """The windows of a video, and what each encoder sees of one. Default: the released networks.

    Raises:
        ValueError: the overlap is negative or more than half a window, or a window has no frames.
    """

    seconds: float | int = 10.24  # length of a window: what AudioLDM2 was trained on
    overlap: float | int = 1.28  # seconds that a window shares with the next: one LOA token
    cavp_fps: float | int = 4  # frames per second
    cavp_size: int = 224  # pixels a side
    timechat_frames: int = 96  # per window
    timechat_size: int = 224  # pixels a side

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.seconds / 2:
            raise ValueError(
                f"windows of {self.seconds} s cannot overlap by {self.overlap} s: "
                "give 0 to half a window"
            )
        if self.cavp_frames < 1 or self.timechat_frames < 1:
            raise ValueError(f"windows of {self.seconds} s have no frame for an encoder")

    @classmethod
    def tiny(cls) -> "WindowSpec":
        """Windows of the shipped miniature."""
        return cls(
            seconds=2.56,
            overlap=0.32,
            cavp_fps=12.5,
            cavp_size=32,
            timechat_frames=8,
            timechat_size=64,
        )

    @property
    def cavp_frames(self) -> int:
        """Frames per window that CAVP sees."""
        return int(self.seconds * self.cavp_fps + 1e-9)

    def starts(self, seconds: float) -> list[float]:
        """Return the starts (s) of the windows of a video; they cover all but `SLACK` of it."""
        step = self.seconds - self.overlap
        more = int(np.ceil((seconds - SLACK - self.seconds) / step - 1e-6))
        return [index * step for index in range(1 + max(0, more))]


@dataclass(frozen=True, eq=False)
class Window:
    """The frames of one window of a video, as each encoder reads them."""

    index: int
    start: float  # seconds since the video's first frame
    seconds: float  # the part of the window that the video covers
    cavp_THWC: UInt8[np.ndarray, "T H W 3"]
    cavp_seconds: Float[np.ndarray, " T"]  # of the moment shown, since the window's start, float64
    timechat_THWC: UInt8[np.ndarray, "frames side side 3"]
    timechat_seconds: Float[np.ndarray, " frames"]  # since the window's start, float64

    def without_frames(self) -> "Window":
        """Return the window once its frames are encoded: they are large."""
        cavp, timechat = (
            np.empty((len(frames), 0, 0, 3), np.uint8)
            for frames in (self.cavp_THWC, self.timechat_THWC)
        )
        return replace(self, cavp_THWC=cavp, timechat_THWC=timechat)
