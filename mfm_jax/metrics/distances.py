"""Measure distances between sets of clips by the embeddings and logits of a classifier.

For sound the classifier is Cnn14 (PANNs): embeddings are the 2048 numbers after fc1 and its ReLU,
logits the 527 before the sigmoid. All scores depend on the classifier: name it with the score. Rows
are clips; paired scores compare row with row. Everything computes in float64.
"""

import warnings
from itertools import pairwise

import numpy as np

from mfm_jax.typing import Float, Int

PUBLISHED_SEED = 2020  # of every shuffle in the published scores
PUBLISHED_EPSILON = 1e-6  # inside audioldm_eval's logarithms, metrics/kl.py:87-105


def frechet_distance(
    reference: Float[np.ndarray, "R D"], generated: Float[np.ndarray, "G D"]
) -> float:
    """Return the Frechet distance of Gaussians fitted to two sets: FD with Cnn14, FAD with VGGish.

    |m1 - m2|² + tr S1 + tr S2 - 2 tr (S1 S2)^½, covariances over n - 1. The last trace is the sum
    of singular values of X1 X2ᵀ (centred rows, scaled), which needs no matrix square root and
    stays exact when clips are fewer than dimensions. It is biased by the number of clips: compare
    only scores of equally many.

    Raises:
        ValueError: fewer than two clips in a set.
    """
    if min(len(reference), len(generated)) < 2:
        raise ValueError("a Frechet distance needs at least two clips on each side")
    x, y = reference.astype(np.float64), generated.astype(np.float64)
    shift = x.mean(axis=0) - y.mean(axis=0)
    x, y = (_small_root((a - a.mean(axis=0)[None, :]) / np.sqrt(len(a) - 1)) for a in (x, y))
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(shift @ shift + (x**2).sum() + (y**2).sum() - 2.0 * overlap)


def frechet_distance_published(
    reference: Float[np.ndarray, "R D"], generated: Float[np.ndarray, "G D"]
) -> float:
    """Return the Frechet distance as published, through scipy's `sqrtm`.

    audioldm_eval metrics/fid.py:9-65, av-benchmark av_bench/metrics/fad.py:7-82. It is about 1e-5
    off and slightly negative for a set against itself when clips are fewer than
    dimensions, and half a minute slow at 2048. Means are taken in float32.

    Raises:
        ValueError: the root is complex by more than 1e-3, where audioldm_eval fails and
            av-benchmark reports -1.
    """
    from scipy.linalg import LinAlgWarning, sqrtm

    shift = (generated.mean(axis=0) - reference.mean(axis=0)).astype(np.float64)
    s1, s2 = (np.atleast_2d(np.cov(a, rowvar=False)) for a in (generated, reference))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # a singular product is the usual case
        root = sqrtm(s1 @ s2)
        if not np.isfinite(root).all():
            nudge = 1e-6 * np.eye(len(s1))
            root = sqrtm((s1 + nudge) @ (s2 + nudge))
    if np.iscomplexobj(root):
        if np.abs(np.diagonal(root).imag).max() > 1e-3:
            raise ValueError("the published Frechet distance is complex here: too few clips")
        root = root.real
    return float(shift @ shift + np.trace(s1) + np.trace(s2) - 2.0 * np.trace(root))


def kl_softmax(
    reference: Float[np.ndarray, "B V"], generated: Float[np.ndarray, "B V"]
) -> Float[np.ndarray, " B"]:
    """Return KL(reference ‖ generated) of the class distributions per clip; report the mean.

    av-benchmark's definition (av_bench/metrics/kl.py:23-39). The softmax treats sounds as
    exclusive, which Cnn14's classes are not; see `kl_bernoulli`.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(generated)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def kl_softmax_published(
    reference: Float[np.ndarray, "B V"], generated: Float[np.ndarray, "B V"]
) -> Float[np.ndarray, " B"]:
    """Return audioldm_eval's `kullback_leibler_divergence_softmax` per clip (kl.py:50, 95-99).

    The 1e-6 inside the logarithm caps a clip at 13.8 and makes identical clips about -5e-4.
    """
    log_p, log_q = _log_softmax(reference), _log_softmax(generated)
    return (np.exp(log_p) * (log_p - np.log(np.exp(log_q) + PUBLISHED_EPSILON))).sum(axis=1)


def kl_bernoulli(
    reference: Float[np.ndarray, "B V"], generated: Float[np.ndarray, "B V"]
) -> Float[np.ndarray, " B"]:
    """Return the KL of the presence of each class, summed over classes, per clip."""
    yes = _log_sigmoid(reference) - _log_sigmoid(generated)
    no = _log_sigmoid(-reference) - _log_sigmoid(-generated)
    p = np.exp(_log_sigmoid(reference))
    return (p * yes + (1.0 - p) * no).sum(axis=1)


def kl_sigmoid_published(
    reference: Float[np.ndarray, "B V"],
    generated: Float[np.ndarray, "B V"],
    *,
    epsilon: float = PUBLISHED_EPSILON,
) -> Float[np.ndarray, " B"]:
    """Return audioldm_eval's `kullback_leibler_divergence_sigmoid` per clip (kl.py:102-105).

    It is half a divergence: the term of an absent class is missing, so it can be negative. With
    `epsilon` 0 it is av-benchmark's (av_bench/metrics/kl.py:33-39), which does not report it.
    """
    log_p = _log_sigmoid(reference)
    log_q = np.log(np.exp(_log_sigmoid(generated)) + epsilon)
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


def inception_score(logits: Float[np.ndarray, "B V"]) -> float:
    """Return exp of the mean KL from each clip's class distribution to their average.

    It is high if each clip is certain and clips vary; the video plays no part. It grows with the
    number of clips: compare equally many.
    """
    log_p = _log_softmax(logits)
    p = np.exp(log_p)
    return float(np.exp((p * (log_p - np.log(p.mean(axis=0))[None, :])).sum(axis=1).mean()))


def inception_score_published(
    logits: Float[np.ndarray, "B V"], *, splits: int = 10, shuffle: bool = True
) -> tuple[float, float]:
    """Return the mean and population deviation of the inception score over `splits` shuffled parts.

    audioldm_eval metrics/isc.py:12-31 and av-benchmark av_bench/metrics/isc.py:9-32, ten parts.
    The parts make it depend on the number of clips: 1 at ten clips, where each part has one, and
    nan below ten.
    """
    n = len(logits)
    if n < splits:
        return float("nan"), float("nan")
    order = published_order(n) if shuffle else np.arange(n)
    cuts = [i * n // splits for i in range(splits + 1)]
    parts = [inception_score(logits[order[a:b]]) for a, b in pairwise(cuts)]
    return float(np.mean(parts)), float(np.std(parts))


def published_order(n: int) -> Int[np.ndarray, " B"]:
    """Return the shuffle of n clips that the published inception score uses."""
    return np.random.RandomState(PUBLISHED_SEED).permutation(n)


def kernel_distance(
    reference: Float[np.ndarray, "R D"],
    generated: Float[np.ndarray, "G D"],
    *,
    subsets: int = 100,
    size: int = 1000,
) -> tuple[float, float]:
    """Return KID, the unbiased squared MMD with kernel (x·y / D + 1)³: mean and deviation of draws.

    audioldm_eval metrics/kid.py:46-104: `subsets` random draws of `size` clips. With fewer clips
    than `size` in both sets there is one draw, of all clips, and the deviation says nothing. The
    mean may be slightly negative.

    Raises:
        ValueError: fewer than two clips in a set.
    """
    size = min(size, len(reference), len(generated))
    if size < 2:
        raise ValueError("a kernel distance needs at least two clips on each side")
    if len(reference) == len(generated) == size:
        subsets = 1  # every draw would be the entire set
    x, y = generated.astype(np.float64), reference.astype(np.float64)
    random = np.random.RandomState(PUBLISHED_SEED)
    drawn = [
        _squared_mmd(
            x[random.choice(len(x), size, replace=False)],
            y[random.choice(len(y), size, replace=False)],
        )
        for _ in range(subsets)
    ]
    return float(np.mean(drawn)), float(np.std(drawn))


def kernel_audio_distance(
    reference: Float[np.ndarray, "R D"],
    generated: Float[np.ndarray, "G D"],
    *,
    bandwidth: float | None = None,
) -> float:
    """Return KAD (arXiv 2502.15602): 100 times the unbiased squared MMD with a Gaussian kernel.

    kadtk 1.1 kad.py:15-97. The kernel is exp(-d² / (2 bandwidth²)). It may be slightly negative.

    Args:
        bandwidth: by default the median distance between clips of the reference.

    Raises:
        ValueError: fewer than two clips in a set, or a reference whose clips are all alike.
    """
    kernels = rbf_kernels(reference, generated, bandwidth=bandwidth)
    return 100.0 * weighted_mmd(*kernels, *(np.ones(len(a)) for a in (reference, generated)))


def rbf_kernels(
    reference: Float[np.ndarray, "R D"],
    generated: Float[np.ndarray, "G D"],
    *,
    bandwidth: float | None = None,
) -> tuple[Float[np.ndarray, "R R"], Float[np.ndarray, "G G"], Float[np.ndarray, "R G"]]:
    """Return KAD's kernel within the reference, within the generated set, and between them.

    Raises:
        ValueError: as `kernel_audio_distance`.
    """
    if min(len(reference), len(generated)) < 2:
        raise ValueError("a kernel audio distance needs at least two clips on each side")
    x, y = reference.astype(np.float64), generated.astype(np.float64)
    within = _squared_distances(x, x)
    if bandwidth is None:
        pairs = np.sort(np.sqrt(within[np.triu_indices(len(x), 1)]))
        bandwidth = float(pairs[(len(pairs) - 1) // 2])  # torch takes the lower of two medians
    if not bandwidth:
        raise ValueError("the clips of the reference are alike: no width of the kernel fits")
    scale = -1.0 / (2.0 * bandwidth**2 + 1e-8)
    squares = within, _squared_distances(y, y), _squared_distances(x, y)
    within, others, between = (np.exp(scale * square) for square in squares)
    return within, others, between


def polynomial_kernels(
    reference: Float[np.ndarray, "R D"], generated: Float[np.ndarray, "G D"]
) -> tuple[Float[np.ndarray, "R R"], Float[np.ndarray, "G G"], Float[np.ndarray, "R G"]]:
    """Return KID's kernel within the reference, within the generated set, and between them."""
    x, y = reference.astype(np.float64), generated.astype(np.float64)
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return xx, yy, xy


def weighted_mmd(
    within: Float[np.ndarray, "R R"],
    others: Float[np.ndarray, "G G"],
    between: Float[np.ndarray, "R G"],
    reference: Float[np.ndarray, " R"],
    generated: Float[np.ndarray, " G"],
) -> float:
    """Return the unbiased squared MMD of weighted clips, given kernels and the weights of clips.

    Pairs of a clip with itself are left out, so equal weights give the usual estimate.
    """
    total = 0.0
    for kernel, weights in ((within, reference), (others, generated)):
        own = weights**2
        pairs = weights.sum() ** 2 - own.sum()
        total += float((weights @ kernel @ weights - own @ np.diagonal(kernel)) / pairs)
    joint = float(reference @ between @ generated / (reference.sum() * generated.sum()))
    return total - 2.0 * joint


def _squared_distances(
    x: Float[np.ndarray, "R D"], y: Float[np.ndarray, "G D"]
) -> Float[np.ndarray, "R G"]:
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2.0 * x @ y.T
    return np.maximum(squares, 0.0)


def _squared_mmd(x: Float[np.ndarray, "B D"], y: Float[np.ndarray, "B D"]) -> float:
    return weighted_mmd(*polynomial_kernels(x, y), np.ones(len(x)), np.ones(len(y)))


def _small_root(rows: Float[np.ndarray, "B D"]) -> Float[np.ndarray, "rows D"]:
    """Return a matrix with the same RᵀR and at most D rows."""
    return rows if len(rows) <= rows.shape[1] else np.asarray(np.linalg.qr(rows, mode="r"))


def _log_softmax(logits: Float[np.ndarray, "B V"]) -> Float[np.ndarray, "B V"]:
    logits = logits.astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def _log_sigmoid(logits: Float[np.ndarray, "B V"]) -> Float[np.ndarray, "B V"]:
    return -np.logaddexp(0.0, -logits.astype(np.float64))
