"""Scores from what networks hear: distances of sets, KL, inception score, LOA."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mfm_jax.evaluation import catalogue
from mfm_jax.evaluation.catalogue import CNN14, MAE, Metric
from mfm_jax.evaluation.figures import SetScore
from mfm_jax.evaluation.networks import Heard
from mfm_jax.metrics import distances
from mfm_jax.metrics.retrieval import retrieval_hits
from mfm_jax.typing import Float, Int

KERNEL_CLIPS = 5000  # most clips of a matrix of kernels; more are drawn at random
NETWORKS = {"cnn14": CNN14, "audiomae": MAE}


class SetResult(NamedTuple):
    """A score of a whole set: how it is computed of any clips, and of how many columns."""

    metric: Metric
    score: SetScore
    width: int


def clip_scores(reference: Heard, system: Heard, *, published: bool) -> dict[str, np.ndarray]:
    """Return the scores by clip: KL from logits, and those of LOA."""
    found: dict[str, np.ndarray] = {}
    if reference.logits is not None and system.logits is not None:
        pair = reference.logits, system.logits
        found["kl_cnn14"] = distances.kl_softmax(*pair)
        if published:
            found["kl_softmax_published"] = distances.kl_softmax_published(*pair)
            found["kl_sigmoid_published"] = distances.kl_sigmoid_published(*pair)
    if reference.loa:
        found["loa_error"], found["loa_recall"] = loa_scores(reference.loa, system.loa)
    return found


def loa_scores(
    real: list[Float[np.ndarray, "L D"]], made: list[Float[np.ndarray, "L2 D"]]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Return the LOA error and retrieval by clip; nan where there is nothing to compare with.

    Each dimension is in units of its deviation over all real tokens. Retrieval compares clips of
    consecutive groups by the cosine of their LOA without the mean, cut to the shortest.
    """
    tokens = np.concatenate(real).astype(np.float64)
    mean, std = tokens.mean(axis=0), np.maximum(tokens.std(axis=0), 1e-6)
    pairs = [[(np.asarray(a, np.float64) - mean) / std for a in side] for side in (real, made)]
    errors = np.array([float(((x - y) ** 2).mean()) for x, y in zip(*pairs, strict=True)])
    if len(real) < 2:
        errors[:] = np.nan  # the deviation of one clip is none of real sounds
    return errors, retrieval_hits(pairs[1], pairs[0])


def set_scores(reference: Heard, system: Heard, *, published: bool) -> list[SetResult]:
    """Return the scores of a system that compare it, as a set, with the reference."""
    found = []
    for key, real in reference.embeddings.items():
        made, width = system.embeddings[key], real.shape[1]
        name = NETWORKS[key]
        frechet, kid, kad = catalogue.embedding_metrics(key, name, width)
        found.append(SetResult(frechet, _frechet(real, made), width))
        found += _kernels(kid, kad, real, made)
        if published:
            metric = catalogue.published_fd(key, name, width)
            found.append(SetResult(metric, _frechet_published(real, made), width))
    return found


def own_scores(heard: Heard, *, published: bool) -> list[SetResult]:
    """Return the scores of one side by itself."""
    if (logits := heard.logits) is None:
        return []
    metrics = {m.key: m for m in (*catalogue.LOGITS, *catalogue.PUBLISHED_LOGITS)}
    width = logits.shape[1]
    found = [SetResult(metrics["is_cnn14"], lambda rows: _inception(logits[rows]), width)]
    if published:

        def parts(rows: Int[np.ndarray, " B"]) -> float:
            return distances.inception_score_published(logits[rows])[0]

        found.append(SetResult(metrics["is_published"], parts, width))
    return found


def _inception(logits: Float[np.ndarray, "N V"]) -> float:
    return distances.inception_score(logits) if len(logits) > 1 else float("nan")


def _frechet(real: Float[np.ndarray, "N D"], made: Float[np.ndarray, "N D"]) -> SetScore:
    def score(rows: Int[np.ndarray, " B"]) -> float:
        if len(rows) < 2:
            return float("nan")
        return distances.frechet_distance(real[rows], made[rows])

    return score


def _frechet_published(real: Float[np.ndarray, "N D"], made: Float[np.ndarray, "N D"]) -> SetScore:
    """Return the score of all clips; it is too slow for an interval."""

    def score(rows: Int[np.ndarray, " B"]) -> float:
        if len(rows) < 2 or not np.array_equal(rows, np.arange(len(real))):
            return float("nan")
        pair = real.astype(np.float32), made.astype(np.float32)
        try:
            return distances.frechet_distance_published(*pair)
        except ValueError:
            return float("nan")  # where the script stops

    return score


def _kernels(
    kid: Metric, kad: Metric, real: Float[np.ndarray, "N D"], made: Float[np.ndarray, "N D"]
) -> list[SetResult]:
    """Return KID and KAD. Their kernels are computed once, and drawn clips only weigh them."""
    if len(real) > KERNEL_CLIPS:
        chosen = np.sort(np.random.default_rng(0).permutation(len(real))[:KERNEL_CLIPS])
        note = f" Of {KERNEL_CLIPS} clips, drawn at random."
        kid, kad = (m._replace(about=m.about + note) for m in (kid, kad))
        real, made = real[chosen], made[chosen]
    undefined = SetResult(kad, lambda rows: float("nan"), 1)
    if len(real) < 2:
        return [undefined._replace(metric=kid), undefined]
    found = [SetResult(kid, _mmd(distances.polynomial_kernels(real, made)), 1)]
    try:
        found.append(SetResult(kad, _mmd(distances.rbf_kernels(real, made), 100.0), 1))
    except ValueError:
        found.append(undefined)  # real clips that are all alike give the kernel no width
    return found


def _mmd(kernels: tuple[np.ndarray, np.ndarray, np.ndarray], scale: float = 1.0) -> SetScore:
    n = len(kernels[0])

    def score(rows: Int[np.ndarray, " B"]) -> float:
        weights = np.bincount(rows[rows < n], minlength=n).astype(np.float64)
        if np.count_nonzero(weights) < 2:
            return float("nan")
        return scale * distances.weighted_mmd(*kernels, weights, weights)

    return score


def sides_heard(parts: list[Mapping[str, Heard]]) -> dict[str, Heard]:
    """Join what several networks heard of the same sides."""
    joined: dict[str, Heard] = {}
    for part in parts:
        for side, heard in part.items():
            whole = joined.setdefault(side, Heard())
            whole.embeddings |= heard.embeddings
            whole.logits = heard.logits if whole.logits is None else whole.logits
            whole.loa = whole.loa or heard.loa
    return joined
