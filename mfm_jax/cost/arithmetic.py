"""Count the floating-point operations of products: two per multiplication, none for padding."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Axis(NamedTuple):
    """A convolution along one spatial axis; `before` is the padding in front."""

    size: int  # of the input
    output: int
    kernel: int
    stride: int = 1
    before: int = 0
    input_dilation: int = 1
    kernel_dilation: int = 1

    def products(self) -> int:
        """Return the number of pairs of output and kernel position that meet an input element."""
        starts = np.arange(self.output) * self.stride - self.before
        positions = starts[:, None] + np.arange(self.kernel) * self.kernel_dilation
        inside = (positions >= 0) & (positions <= (self.size - 1) * self.input_dilation)
        return int((inside & (positions % self.input_dilation == 0)).sum())


def dot(output: Sequence[int], contracted: Sequence[int]) -> int:
    """Return the operations of a matrix product, given its output's sizes and the summed axes'."""
    return 2 * math.prod(output) * math.prod(contracted)


def convolution(batch: int, channels_out: int, channels_in: int, space: Sequence[Axis]) -> int:
    """Return the operations of a convolution; one output channel reads `channels_in`."""
    return 2 * batch * channels_out * channels_in * math.prod(axis.products() for axis in space)
