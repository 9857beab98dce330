"""Floating-point operations of a product: two for each multiplication that is not with padding."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """How a convolution runs along one axis of space; `before` is the padding in front."""

    size: int  # of the input
    output: int
    kernel: int
    stride: int = 1
    before: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1

    def products(self) -> int:
        """Pairs of an output and a place of its kernel that lies on a number of the input."""
        starts = np.arange(self.output) * self.stride - self.before
        places = starts[:, None] + np.arange(self.kernel) * self.kernel_dilation
        inside = (places >= 0) & (places <= (self.size - 1) * self.input_dilation)
        return int((inside & (places % self.input_dilation == 0)).sum())


def dot(output: Sequence[int], contracted: Sequence[int]) -> int:
    """Of a product of matrices, by the sizes of its output and of the axes summed over."""
    return 2 * math.prod(output) * math.prod(contracted)


def convolution(batch: int, channels_out: int, channels_in: int, space: Sequence[Axis]) -> int:
    """Of a convolution; `channels_in` are those that one output channel reads."""
    return 2 * batch * channels_out * channels_in * math.prod(axis.products() for axis in space)
