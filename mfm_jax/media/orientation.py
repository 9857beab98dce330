"""The eight ways in which a player turns and mirrors the stored pictures of a video."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import av
import numpy as np

from mfm_jax.typing import UInt8


@dataclass(frozen=True)
class Orientation:
    """The display matrix of a video: a transposition, then mirrorings."""

    transpose: bool = False  # rows become columns
    mirror_x: bool = False  # left becomes right
    mirror_y: bool = False  # top becomes bottom

    @property
    def mirrored(self) -> bool:
        """True if left becomes right before the picture is turned by `rotation`."""
        return self.transpose ^ self.mirror_x ^ self.mirror_y

    @property
    def rotation(self) -> int:
        """Degrees clockwise: 0, 90, 180 or 270."""
        if self.transpose:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_y else 0

    def apply(self, pixels_HWC: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "H2 W2 3"]:
        """Return stored pixels as a player shows them."""
        shown = pixels_HWC.transpose(1, 0, 2) if self.transpose else pixels_HWC
        shown = shown[:: -1 if self.mirror_y else 1, :: -1 if self.mirror_x else 1]
        return np.ascontiguousarray(shown)


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Return the orientation that comes with a frame; upright if none does."""
    side_data: Mapping[str, Any] = cast(Any, frame.side_data)
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return Orientation()
    # Nine numbers, row by row: x' = a x + c y, y' = b x + d y.
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5].tolist()
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, mirror_x=c < 0, mirror_y=b < 0)
    return Orientation(False, mirror_x=a < 0, mirror_y=d < 0)
