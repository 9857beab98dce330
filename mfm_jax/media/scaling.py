"""Scale decoded frames as the encoders read them, each as its original does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import av
import numpy as np
from av.video.reformatter import Interpolation
from PIL import Image

from mfm_jax.media.orientation import Orientation
from mfm_jax.media.windows import View
from mfm_jax.typing import UInt8

Size = tuple[int, int]
"""Height and width in pixels."""

BICUBIC = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""TimeChat's scaler. Without the flags it darkens by one level and halves the colour width."""


ALONE = 1 << 21
"""Pixels of a frame up to which one thread scales it: to start others for it takes longer."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A decoded frame, which is scaled on demand, and once for each view."""

    frame: av.VideoFrame
    orientation: Orientation
    scaled: dict[View, np.ndarray] = field(default_factory=dict)

    @cached_property
    def upright_HWC(self) -> UInt8[np.ndarray, "H W 3"]:
        """The frame as a player shows it."""
        return self.orientation.apply(as_rgb(self.frame))

    def __call__(self, view: View) -> UInt8[np.ndarray, "height width 3"]:
        """Return the frame as an encoder sees it."""
        if view not in self.scaled:
            self.scaled[view] = SCALINGS[view.scaling](self, view.size)
        return self.scaled[view]


def as_rgb(
    frame: av.VideoFrame,
    width: int | None = None,
    height: int | None = None,
    how: Interpolation | None = None,
) -> UInt8[np.ndarray, "H W 3"]:
    """Return the pixels of a frame, by ffmpeg's scaler if it is to have another size."""
    return reformatted(frame, width, height, "rgb24", how).to_ndarray()


def reformatted(
    frame: av.VideoFrame,
    width: int | None,
    height: int | None,
    form: str,
    how: Interpolation | None = None,
) -> av.VideoFrame:
    """Return a frame with another format, and another size if one is given.

    PyAV starts a thread for each core, for every single frame, unless it is told how many.
    """
    threads = 1 if frame.width * frame.height <= ALONE else 0
    return frame.reformat(width, height, form, interpolation=how, threads=threads)


def resize_cavp(
    frame_HWC: UInt8[np.ndarray, "H W 3"], size: Size = (224, 224)
) -> UInt8[np.ndarray, "height width 3"]:
    """Squash a frame with Pillow's antialiased bilinear filter, as CAVP does."""
    resized = Image.fromarray(frame_HWC).resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(resized)


def resize_synchformer(
    frame_HWC: UInt8[np.ndarray, "H W 3"], size: Size = (224, 224)
) -> UInt8[np.ndarray, "height width 3"]:
    """Scale a frame with Pillow's antialiased bicubic filter until it covers `size`; cut the rest.

    For a square that is the original's geometry: the shorter side becomes the square's, the longer
    one is rounded down. The original scales with torchvision's kernel of bytes, from which Pillow's
    differs by at most two levels, in a few pixels.
    """
    height, width = frame_HWC.shape[:2]
    high, wide = size
    if height * wide <= width * high:
        whole = high, high * width // height
    else:
        whole = wide * height // width, wide
    scaled = Image.fromarray(frame_HWC).resize(whole[::-1], Image.Resampling.BICUBIC)
    top, left = (round((n - m) / 2) for n, m in zip(whole, size, strict=True))
    return np.asarray(scaled)[top : top + high, left : left + wide]


def _by_ffmpeg(picture: Picture, size: Size, how: Interpolation) -> UInt8[np.ndarray, "H W 3"]:
    """Squash a frame with ffmpeg's scaler, in its stored orientation."""
    height, width = size[::-1] if picture.orientation.transpose else size
    squashed = as_rgb(picture.frame, width, height, how)
    return picture.orientation.apply(squashed)


SCALINGS: Mapping[str, Callable[[Picture, Size], np.ndarray]] = {
    "squash_bilinear": lambda picture, size: resize_cavp(picture.upright_HWC, size),
    "squash_bicubic": lambda picture, size: _by_ffmpeg(picture, size, BICUBIC),
    "squash_area": lambda picture, size: _by_ffmpeg(picture, size, Interpolation.AREA),
    "cover_bicubic": lambda picture, size: resize_synchformer(picture.upright_HWC, size),
}
"""The ways in which frames are scaled, by the names that views give."""
