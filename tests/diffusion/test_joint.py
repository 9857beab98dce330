"""Windows that are denoised jointly: they agree where they overlap, and videos do not mix."""

import jax
import numpy as np
from jax import numpy as jnp

from mfm_jax.diffusion.joint import Ends, agreed, continued

OVERLAP = 4
X = jax.random.normal(jax.random.key(0), (5, 10, 2, 3))
# Two videos: of three windows and of two.
ENDS = Ends(
    np.array([True, False, False, True, False]), np.array([False, False, True, False, True])
)


def test_noise_goes_on_where_windows_overlap():
    before = jnp.concatenate([X[:1] + 9, X[:-1]])
    noise = np.asarray(continued(X, before, ENDS.first, overlap=OVERLAP))
    for i in (1, 2, 4):
        np.testing.assert_array_equal(noise[i, :OVERLAP], X[i - 1, -OVERLAP:])
    for i in (0, 3):
        np.testing.assert_array_equal(noise[i], X[i])
    np.testing.assert_array_equal(noise[:, OVERLAP:], X[:, OVERLAP:])


def test_each_moment_is_predicted_by_the_window_in_which_it_lies_deeper():
    found = np.asarray(agreed(X, X[:1] + 9, X[-1:] + 9, ENDS, overlap=OVERLAP))
    for i in (0, 1, 3):
        np.testing.assert_array_equal(found[i, -OVERLAP:], found[i + 1, :OVERLAP])
        np.testing.assert_array_equal(found[i, -OVERLAP:-2], X[i, -OVERLAP:-2])
        np.testing.assert_array_equal(found[i, -2:], X[i + 1, 2:OVERLAP])
    for i, part in ((0, slice(0, 8)), (2, slice(2, 10)), (3, slice(0, 8)), (4, slice(2, 10))):
        np.testing.assert_array_equal(found[i, part], X[i, part])


def test_batches_of_any_size_agree_as_one():
    whole = agreed(X, X[:1], X[-1:], ENDS, overlap=OVERLAP)
    parts = [X[:2], X[2:4], X[4:]]
    ends = [Ends(*(each[a:b] for each in ENDS)) for a, b in ((0, 2), (2, 4), (4, 5))]
    beside = zip([parts[0], *parts[:2]], parts, [*parts[1:], parts[2]], ends, strict=True)
    found = [agreed(own, a[-1:], b[:1], its, overlap=OVERLAP) for a, own, b, its in beside]
    np.testing.assert_array_equal(jnp.concatenate(found), whole)
