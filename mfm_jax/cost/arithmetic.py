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
        """Return the number of pairs of output and kernel position that meet an input element.

        The pairs are not listed: XLA also writes batches as windows, of tens of thousands.
        """
        starts = np.arange(self.output) * self.stride - self.before
        last = (self.size - 1) * self.input_dilation
        # The kernel positions of an output that lie inside the input: from `low` to below `high`.
        low = np.maximum(0, -(starts // self.kernel_dilation))
        high = np.minimum(self.kernel, (last - starts) // self.kernel_dilation + 1)
        # Of these, zeros lie under all but every `period`-th, from `phase` on.
        common = math.gcd(self.kernel_dilation, self.input_dilation)
        period = self.input_dilation // common
        inverse = pow(self.kernel_dilation // common, -1, period)
        phase = -(starts // common) * inverse % period
        pairs = (np.maximum(high, low) - phase + period - 1) // period
        pairs -= (low - phase + period - 1) // period
        return int(pairs[starts % common == 0].sum())


def dot(output: Sequence[int], contracted: Sequence[int]) -> int:
    """Return the operations of a matrix product, given its output's sizes and the summed axes'."""
    return 2 * math.prod(output) * math.prod(contracted)


def convolution(batch: int, channels_out: int, channels_in: int, space: Sequence[Axis]) -> int:
    """Return the operations of a convolution; one output channel reads `channels_in`."""
    return 2 * batch * channels_out * channels_in * math.prod(axis.products() for axis in space)
