"""CAVP's agreement and retrieval, on features whose scores are known."""

import jax
import numpy as np
import pytest

from mfm_jax.metrics.alignment import agreement
from mfm_jax.metrics.retrieval import GROUP, retrieval_hits

RNG = np.random.default_rng(0)


def scores(video, audio, steps):
    found = jax.jit(agreement)(video, audio, np.array(steps, np.int32))
    cosines = np.einsum("bd,bsd->bs", found.video, found.audio)
    return cosines, np.asarray(found.moments)


def features(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def test_equal_features_agree_whatever_their_length_and_opposite_ones_do_not():
    video = features(3, 8, 5)
    audio = np.stack([video, 3 * video, -video], axis=1)
    cosines, moments = scores(video, audio, [8, 8, 8])
    np.testing.assert_allclose(moments, [[1, 1, -1]] * 3, atol=1e-6)
    np.testing.assert_allclose(cosines[:, :2], 1, atol=1e-6)
    assert (cosines[:, 2] < 0.9).all()


def test_the_order_of_moments_counts_for_moments_alone():
    video = features(1, 8, 5)
    cosines, moments = scores(video, video[:, None, ::-1], [8])
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    assert moments < 0.7


def test_what_lies_behind_the_end_of_a_clip_does_not_count():
    video, audio = features(2, 8, 5), features(2, 1, 8, 5)
    whole = scores(video[:, :3], audio[:, :, :3], [3, 2])
    video[:, 3:], audio[:, :, 3:] = 99, -99
    np.testing.assert_allclose(scores(video, audio, [3, 2]), whole, atol=1e-6)


def test_each_finds_its_own_among_its_group_and_shuffled_ones_do_not():
    """Clips of one piece or two are compared over the first; a single clip has no score."""
    clips = [features(1 + i % 2, 5) for i in range(GROUP + 1)]
    found = retrieval_hits(clips, [2 * clip for clip in clips])
    assert found[:GROUP].tolist() == [1] * GROUP
    assert np.isnan(found[GROUP])
    assert np.nanmean(retrieval_hits(clips, clips[1:] + clips[:1])) < 0.1
    assert retrieval_hits([], []).shape == (0,)


@pytest.mark.parametrize("clips", [2, 3])
def test_few_clips(clips):
    both = [np.eye(3)[[i]] for i in range(clips)]
    assert retrieval_hits(both, both).tolist() == [1] * clips
