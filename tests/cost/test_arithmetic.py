"""Products are counted as they are, and without listing them."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mfm_jax.cost.arithmetic import Axis

few = st.integers(1, 9)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.builds(Axis, few, few, few, few, st.integers(-6, 9), few, few))
def test_pairs_of_an_axis(axis):
    starts = np.arange(axis.output) * axis.stride - axis.before
    at = starts[:, None] + np.arange(axis.kernel) * axis.kernel_dilation
    inside = (at >= 0) & (at <= (axis.size - 1) * axis.input_dilation)
    assert axis.products() == (inside & (at % axis.input_dilation == 0)).sum()


def test_a_window_over_a_large_batch_takes_no_memory():
    """XLA writes products of a batch so; a list of the pairs would take a hundred gigabytes."""
    size = 1 << 17
    assert Axis(size, size, size, 1, size - 1).products() == size * (size + 1) // 2
