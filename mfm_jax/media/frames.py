"""The frames of a video that each encoder sees, window by window."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image

from mfm_jax.errors import MediaError
from mfm_jax.media.probe import Timeline, opened, read_timeline, reading
from mfm_jax.media.windows import (
    Window,
    WindowSpec,
    cavp_frame_indices,
    cavp_frame_seconds,
    timechat_frame_indices,
)
from mfm_jax.typing import UInt8

BICUBIC = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""TimeChat's scaler. Without the flags it darkens by one level and halves the colour width."""


def resize_cavp(
    frame_HWC: UInt8[np.ndarray, "H W 3"], size: int = 224
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Squash a frame to a square with Pillow's antialiased bilinear filter, as CAVP does."""
    resized = Image.fromarray(frame_HWC).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(resized)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The frames of the video that one window shows, by their number."""

    index: int
    start: float
    seconds: float
    cavp: np.ndarray
    cavp_seconds: np.ndarray
    timechat: np.ndarray
    timechat_seconds: np.ndarray

    @property
    def first(self) -> int:
        return int(min(self.cavp[0], self.timechat[0]))

    @property
    def last(self) -> int:
        return int(max(self.cavp[-1], self.timechat[-1]))

    def blank(self, spec: WindowSpec) -> Window:
        """Return the window with no frame in it yet."""
        cavp, timechat = (
            np.zeros((len(numbers), size, size, 3), np.uint8)
            for numbers, size in (
                (self.cavp, spec.cavp_size),
                (self.timechat, spec.timechat_size),
            )
        )
        return Window(
            self.index,
            self.start,
            self.seconds,
            cavp,
            self.cavp_seconds,
            timechat,
            self.timechat_seconds,
        )

    def paint(self, window: Window, number: int, picture: "_Picture") -> None:
        """Put frame `number` of the video wherever the window shows it."""
        if (slots := self.cavp == number).any():
            window.cavp_THWC[slots] = picture.cavp_HWC
        if (slots := self.timechat == number).any():
            window.timechat_THWC[slots] = picture.timechat_HWC


def _plans(line: Timeline, spec: WindowSpec, begin_at: float) -> Iterator[_Plan]:
    shown = line.times
    for index, later in enumerate(spec.starts(line.seconds - begin_at)):
        start = begin_at + later
        times = shown - start
        begin, end = np.searchsorted(times, [-1e-6, spec.seconds - 1e-6])
        if begin == end:  # no frame appears in this window: one from before it stays on
            begin = end - 1
        picked = begin + timechat_frame_indices(int(end - begin), spec.timechat_frames)
        picked = picked[np.arange(spec.timechat_frames) * len(picked) // spec.timechat_frames]
        slots = cavp_frame_indices(times, spec.cavp_fps, spec.cavp_frames)
        yield _Plan(
            index,
            start,
            seconds=min(float(spec.seconds), line.seconds - start),
            cavp=slots,
            cavp_seconds=cavp_frame_seconds(times, slots, spec.cavp_fps),
            timechat=picked,
            timechat_seconds=np.maximum(times[picked], 0.0),
        )


@dataclass(frozen=True, eq=False)
class _Picture:
    """A decoded frame, upright and in the sizes of the encoders; converted on demand, once."""

    frame: av.VideoFrame
    spec: WindowSpec
    rotation: int  # degrees clockwise

    @cached_property
    def cavp_HWC(self) -> UInt8[np.ndarray, "side side 3"]:
        upright = self._turn(self.frame.to_ndarray(format="rgb24"))
        return resize_cavp(upright, self.spec.cavp_size)

    @cached_property
    def timechat_HWC(self) -> UInt8[np.ndarray, "side side 3"]:
        size = self.spec.timechat_size
        squashed = self.frame.reformat(size, size, "rgb24", interpolation=BICUBIC)
        return self._turn(squashed.to_ndarray())

    def _turn(self, pixels: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(pixels, -round(self.rotation / 90)))


def windows(path: Path, spec: WindowSpec, start: float = 0.0) -> Iterator[Window]:
    """Yield the windows of a video from `start` (s) on, each with as many frames as `spec` says.

    A window starts every `seconds - overlap`; a video no longer than one window gives one. Past
    the video's end the last frame is held. Where a window has fewer frames than `spec` asks for,
    frames repeat: a deliberate deviation from TimeChat, for fixed shapes under `jit`. One pass over
    the packets chooses the frames and one over the frames reads them; about two windows are in
    memory at a time.

    Raises:
        MediaError: as `probe`; also if the video is damaged further on or ends before `start`.
    """
    line = read_timeline(path)
    if start >= line.seconds:
        raise MediaError(
            f"{path} ends at {line.seconds:.2f} s: nothing is left from {start:g} s on"
        )
    ahead = deque(_plans(line, spec, start))
    begun: deque[tuple[_Plan, Window]] = deque()
    for number, frame in enumerate(_frames(path, line)):
        picture = _Picture(frame, spec, line.rotation)
        while ahead and ahead[0].first <= number:
            begun.append((ahead[0], ahead.popleft().blank(spec)))
        for plan, window in begun:
            plan.paint(window, number, picture)
        while begun and begun[0][0].last <= number:
            yield begun.popleft()[1]
        if not (ahead or begun):
            return


def _frames(path: Path, line: Timeline) -> Iterator[av.VideoFrame]:
    """Yield every frame of the timeline in order; undecodable ones are replaced by a neighbour."""
    shown, held = 0, None
    with opened(path) as (container, stream), reading(path):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if frame.pts is None:
                continue
            number = int(np.searchsorted(line.pts, frame.pts, side="right")) - 1
            for _ in range(shown, number):
                yield frame if held is None else held
            if number >= shown:
                yield frame
            shown, held = max(shown, number + 1), frame
    if held is None:
        raise MediaError(f"{path} has no frame that can be decoded: re-encode it as mp4")
    for _ in range(shown, len(line.pts)):
        yield held
