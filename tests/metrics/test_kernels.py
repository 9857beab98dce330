"""KAD and weighted kernel distances, on sets whose distance can be written down."""

import numpy as np
import pytest

from mfm_jax.metrics import distances


def sets(n=12, d=5, shift=0.0):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, d)), rng.normal(size=(n, d)) + shift


def test_kad_of_two_pairs_by_hand():
    """Points on a line: 0 and 2 against 1 and 3; the bandwidth is the reference's distance, 2."""
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])
    near, two, far = (np.exp(-d * d / 8) for d in (1, 2, 3))
    assert distances.kernel_audio_distance(x, y) == pytest.approx(
        100 * (two + two - 2 * (3 * near + far) / 4), abs=1e-6
    )


@pytest.mark.parametrize(("clips", "middle"), [([0, 1, 3], 2.0), ([0, 1, 3, 7], 3.0)])
def test_the_bandwidth_is_the_lower_median_distance_of_the_reference(clips, middle):
    x, y = np.array(clips, float)[:, None], np.array([[5.0], [9.0]])
    default = distances.kernel_audio_distance(x, y)
    assert default == distances.kernel_audio_distance(x, y, bandwidth=middle)
    assert default != distances.kernel_audio_distance(y, x)


def test_farther_sets_are_farther_and_repeated_clips_weigh_more():
    x, y = sets()
    near, far = (distances.kernel_audio_distance(x, y + shift) for shift in (0.5, 2.0))
    assert near < far
    kernels = distances.polynomial_kernels(x, y)
    ones = np.ones(len(x))
    kid, _ = distances.kernel_distance(x, y)
    assert distances.weighted_mmd(*kernels, ones, ones) == pytest.approx(kid)
    assert distances.weighted_mmd(*kernels, 2 * ones, ones) == pytest.approx(kid)
    some = (np.arange(len(x)) < 5).astype(float)
    part, _ = distances.kernel_distance(x[:5], y[:5])
    assert distances.weighted_mmd(*kernels, some, some) == pytest.approx(part)


def test_sets_without_a_distance_are_refused():
    x, y = sets()
    with pytest.raises(ValueError, match="at least two clips"):
        distances.kernel_audio_distance(x[:1], y)
    with pytest.raises(ValueError, match="are alike"):
        distances.kernel_audio_distance(np.ones((4, 3)), y[:, :3])
