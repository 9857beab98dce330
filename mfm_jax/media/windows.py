"""Cut a video into windows, and choose the frames that each encoder sees.

Nothing here reads a file, so that generation needs no video library.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

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
class View:
    """The frames that an encoder sees of a window: which ones, and in which size.

    There are either `fps` of them a second, chosen as ffmpeg's `fps` filter does, or `frames`
    spread over the window, chosen as TimeChat does.
    """

    size: tuple[int, int]  # pixels: height and width
    scaling: str  # of `mfm_jax.media.scaling`
    fps: float | int = 0
    frames: int = 0

    def count(self, seconds: float) -> int:
        """Return the frames of a window."""
        return int(seconds * self.fps + 1e-9) if self.fps else self.frames

    def choose(
        self, times: Float[np.ndarray, " frames"], seconds: float
    ) -> tuple[Int[np.ndarray, " T"], Float[np.ndarray, " T"]]:
        """Return which frames a window shows, and the moment that each of them shows.

        Args:
            times: of the frames from the one at the window's start to one after its end, in
                seconds since its start.
            seconds: length of the window.
        """
        if self.fps:
            picked = cavp_frame_indices(times, self.fps, self.count(seconds))
            return picked, cavp_frame_seconds(times, picked, self.fps)
        begin, end = np.searchsorted(times, [-1e-6, seconds - 1e-6])
        if begin == end:  # no frame appears in this window: one from before it stays on
            begin = end - 1
        picked = begin + timechat_frame_indices(int(end - begin), self.frames)
        picked = picked[np.arange(self.frames) * len(picked) // self.frames]
        return picked, np.maximum(times[picked], 0.0)


def cavp_view(fps: float | int = 4, size: int = 224) -> View:
    """Return what CAVP sees; by default the released network."""
    return View((size, size), "squash_bilinear", fps=fps)


def timechat_view(frames: int = 96, size: int = 224) -> View:
    """Return what TimeChat sees; by default the released network."""
    return View((size, size), "squash_bicubic", frames=frames)


@dataclass(frozen=True)
class WindowSpec:
    """The windows of a video, and what each encoder sees of one.

    Raises:
        ValueError: the overlap is negative or more than half a window, or an encoder sees no frame.
    """

    seconds: float | int = 10.24  # length of a window: what AudioLDM2 was trained on
    overlap: float | int = 1.28  # seconds that a window shares with the next: one LOA token
    views: Mapping[str, View] = field(default_factory=dict)  # by encoder

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.seconds / 2:
            raise ValueError(
                f"windows of {self.seconds} s cannot overlap by {self.overlap} s: "
                "give 0 to half a window"
            )
        if any(view.count(self.seconds) < 1 for view in self.views.values()):
            raise ValueError(f"windows of {self.seconds} s have no frame for an encoder")

    def starts(self, seconds: float) -> list[float]:
        """Return the starts (s) of the windows of a video; they cover all but `SLACK` of it."""
        step = self.seconds - self.overlap
        more = int(np.ceil((seconds - SLACK - self.seconds) / step - 1e-6))
        return [index * step for index in range(1 + max(0, more))]

    def recorded(self, names: Collection[str]) -> dict[str, Any]:
        """Return the fields as folders of features record them, with the views of `names`."""
        told: dict[str, Any] = {"seconds": self.seconds, "overlap": self.overlap}
        for name, view in self.views.items():
            if name not in names:
                continue
            height, width = view.size
            told |= {f"{name}_fps": view.fps} if view.fps else {f"{name}_frames": view.frames}
            told[f"{name}_size"] = height if height == width else [height, width]
        return told


@dataclass(frozen=True, eq=False)
class Seen:
    """The frames that an encoder sees of one window."""

    pixels: UInt8[np.ndarray, "T H W 3"]
    seconds: Float[np.ndarray, " T"]  # of the moment shown, since the window's start, float64


@dataclass(frozen=True, eq=False)
class Window:
    """The frames of one window of a video, as each encoder reads them."""

    index: int
    start: float  # seconds since the video's first frame
    seconds: float  # the part of the window that the video covers
    seen: Mapping[str, Seen]  # by encoder

    def without_frames(self) -> "Window":
        """Return the window once its frames are encoded: they are large."""
        empty = {
            name: Seen(np.empty((len(its.seconds), 0, 0, 3), np.uint8), its.seconds)
            for name, its in self.seen.items()
        }
        return replace(self, seen=empty)


def blank_window(spec: WindowSpec) -> Window:
    """Return a black window, for its shapes."""
    seen = {}
    for name, view in spec.views.items():
        count = view.count(spec.seconds)
        seen[name] = Seen(np.zeros((count, *view.size, 3), np.uint8), np.zeros(count))
    return Window(0, 0.0, float(spec.seconds), seen)
