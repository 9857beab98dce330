"""Score onsets: whether the sound starts when it should.

An onset is a sample index at 22050 Hz, on a grid of 512 samples (23.2 ms). Detection is librosa
0.11's, which all three sources call. Its onsets are late: by 21 ms on average on clean strikes, at
most 38 ms. This cancels when both sides are detected; with annotated times it does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from mfm_jax.media.audio import mel_filters
from mfm_jax.metrics.spectra import magnitude
from mfm_jax.typing import Float, Int, Shaped

RATE = 22_050  # Hz, of every wave and sample index here
HOP = 512  # samples between frames of the onset strength
NEARBY = 1102  # samples, 50 ms: half the span in which an onset's loudness is sought
APART = 0.05 * RATE  # samples; of two onsets closer than this the quieter one is dropped
WINDOW = 0.1  # s; a prediction further from its target is a miss


@dataclass(frozen=True)
class OnsetScore:
    """Onsets of one clip against its targets; every number in [0, 1]."""

    recall: float  # targets that were hit
    precision: float  # predictions that hit
    f1: float
    ap: float  # average precision, predictions ranked by loudness


@dataclass(frozen=True)
class PublishedScore:
    """The scores of a published script for one clip, and the lists that they are computed from."""

    accuracy: float  # hits / targets: a recall, so extra predictions cost nothing
    ap: float
    f1: float
    kept: tuple[int, ...]  # predictions after suppression, in time order
    hits: tuple[int, ...]  # 1 for each of `kept` that hit a target
    labels: tuple[int, ...]  # the list AP is taken over: 1 for targets, 0 for false alarms
    scores: tuple[float, ...]  # and its confidences, 0 for missed targets


def resample(wave: Float[np.ndarray, " A"], rate: int) -> Float[np.ndarray, " samples"]:
    """Resample `wave` to 22050 Hz, as librosa.load does since 0.10 (soxr, high quality).

    The published numbers depend on soxr: another filter moves the onset strength by up to
    2e-2 and may gain or lose an onset in noise.
    """
    import soxr

    out = soxr.resample(wave, rate, RATE, quality="HQ")
    size = -(-len(wave) * RATE // rate)
    return np.pad(out[:size], (0, max(0, size - len(out))))


def onset_strength(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, " T"]:
    """Return the mean rise in dB over 128 mel bands per frame; frame t lies at 512 t samples.

    librosa 0.11 `onset.onset_strength`: dB floor 80 under the clip's maximum, so one loud event
    hides quiet ones. A rise from frame t - 3 to t - 2 is put at t, half a window later.
    """
    power = magnitude(wave, n_fft=2048, hop=HOP, pad="constant") ** 2
    filters = mel_filters(mels=128, n_fft=2048, fmin=0, fmax=RATE / 2, rate=RATE)
    decibels = 10.0 * np.log10(np.maximum(power @ filters.T, 1e-10))
    decibels = np.maximum(decibels, decibels.max() - 80.0)
    rise = np.maximum(0.0, np.diff(decibels, axis=0)).mean(axis=1)
    return np.concatenate([np.zeros(3), rise])[: len(power)]


def pick_peaks(strength: Float[np.ndarray, " T"], *, delta: float) -> Int[np.ndarray, " onsets"]:
    """Return the frames where the strength, scaled to [0, 1], peaks `delta` above its surroundings.

    librosa 0.11 `util.peak_pick` with `onset_detect`'s spans at 22050 Hz: not below the frame
    before, `delta` above the mean of four frames to either side, two frames after the last peak.
    """
    scaled = strength - strength.min()
    if not scaled.any():
        return np.zeros(0, np.int64)
    scaled = scaled / (scaled.max() + np.finfo(np.float32).tiny)
    peaks: list[int] = []
    for t, value in enumerate(scaled):
        if peaks and t - peaks[-1] < 2:
            continue
        around = scaled[max(0, t - 4) : t + 5]
        if value >= scaled[max(0, t - 1)] and value >= around.mean() + delta:
            peaks.append(t)
    return np.array(peaks, np.int64)


def detect_onsets(
    wave: Float[np.ndarray, " A"], *, delta: float = 0.07
) -> Int[np.ndarray, " onsets"]:
    """Return the onsets of a wave at 22050 Hz in samples; digital silence has none.

    `delta` is librosa's threshold: 0.07 by default there, 0.3 in CondFoleyGen and MMAudio.
    """
    return pick_peaks(onset_strength(wave), delta=delta) * HOP


def loudness(
    wave: Float[np.ndarray, " A"], onsets: Int[np.ndarray, " onsets"]
) -> Float[np.ndarray, " onsets"]:
    """Return the peak of the absolute wave within 50 ms of each onset."""
    level = np.abs(wave)
    return np.array([level[max(0, o - NEARBY) : o + NEARBY].max() for o in onsets], level.dtype)


def suppress(
    onsets: Int[np.ndarray, " onsets"], confidence: Float[np.ndarray, " onsets"]
) -> Int[np.ndarray, " kept"]:
    """Return `onsets` in time order without those closer than 50 ms to a louder one."""
    kept: list[int] = []
    for i in np.argsort(-confidence, kind="stable"):
        if all(abs(onsets[i] - k) >= APART for k in kept):
            kept.append(int(onsets[i]))
    return np.array(sorted(kept), np.int64)


def score_onsets(
    wave: Float[np.ndarray, " A"],
    predicted: Int[np.ndarray, " onsets"],
    targets: Shaped[np.ndarray, " targets"],
    *,
    window: float = WINDOW,
) -> OnsetScore | None:
    """Score the onsets `predicted` in `wave` against `targets` (samples, may be fractional).

    After suppression each prediction, the loudest first, takes the nearest free target less than
    `window` seconds away. AP is the sum of the precision at the rank of each hit, divided by the
    number of targets. None without targets: leave the clip out of the mean.
    """
    if not len(targets):
        return None
    kept = suppress(predicted, loudness(wave, predicted))
    free = np.ones(len(targets), bool)
    hits = []
    for i in np.argsort(-loudness(wave, kept), kind="stable"):
        gap = np.where(free, np.abs(targets - kept[i]), np.inf)
        nearest = int(gap.argmin())
        hits.append(bool(gap[nearest] < window * RATE))
        free[nearest] &= not hits[-1]
    found = np.cumsum(hits)
    at_hits = [found[i] / (i + 1) for i, hit in enumerate(hits) if hit]
    n_hit = sum(hits)
    return OnsetScore(
        recall=n_hit / len(targets),
        precision=n_hit / len(hits) if hits else 0.0,
        f1=2 * n_hit / (len(hits) + len(targets)),
        ap=float(sum(at_hits)) / len(targets),
    )


def condfoley_published(
    wave: Float[np.ndarray, " A"],
    predicted: Int[np.ndarray, " onsets"],
    targets: Int[np.ndarray, " targets"],
    *,
    window: float = WINDOW,
) -> PublishedScore:
    """Return CondFoleyGen's onset accuracy and AP of one clip (predict_onset.py:71-109).

    Both sides are onsets detected at delta 0.3 in the first 2 s (:23-47); the published number is
    the mean over clips. Its AP means little: a clip without predictions scores 1, targets after the
    last prediction are ignored, and missed ones count as retrieved last. A target takes the loudest
    prediction in its window, not the nearest. F1 is MMAudio's, computed from these lists.

    Raises:
        ValueError: a prediction in the first 50 ms, or no onsets on either side; the original
            stops there as well.
    """
    level = np.abs(wave)
    spread = level.max() - level.min()
    level = (level - level.min()) / (spread if spread else 1.0)
    confidence = _published_loudness(level, predicted)
    kept = _suppress_published(confidence)
    return _score_published(kept, confidence, targets, window, lambda free, i: level[free[i]])


def mmaudio_published(
    wave: Float[np.ndarray, " A"],
    predicted: Int[np.ndarray, " onsets"],
    true_seconds: Float[np.ndarray, " targets"],
    *,
    delta: float = 0.3,
) -> PublishedScore:
    """Return MMAudio's onset accuracy, AP and F1 of one clip (eval_onsets.py:18-119).

    `predicted` is detected at `delta` in the first 8 s; truth is annotated times, read up to the
    first at or after 8 s. `delta` is also the window in seconds, so almost 0.3 s late is a hit.
    Besides CondFoleyGen's faults, loudness is the signed wave, which puts silence near the middle;
    among several candidates it compares the wrong ones once a prediction is used; F1 ignores the
    targets after the last prediction.

    Raises:
        ValueError: as `condfoley_published`.
    """
    level = (wave - wave.min()) / (wave.max() - wave.min() + 1e-6)
    confidence = _published_loudness(level, predicted)
    kept = _suppress_published(confidence)
    targets = RATE * np.array(list(takewhile(lambda s: s < 8.0, true_seconds)), np.float64)
    return _score_published(kept, confidence, targets, delta, lambda _, i: level[kept[i]])


def average_precision(labels: Sequence[int], scores: Sequence[float]) -> float:
    """Return the sum of precision times the step in recall; equal scores are one step.

    This is scikit-learn's definition; 0 without positives.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    ranked = np.asarray(scores)[order]
    last_of_tie = np.append(ranked[1:] != ranked[:-1], True)
    true = np.cumsum(np.asarray(labels)[order])[last_of_tie]
    if not true[-1]:
        return 0.0
    retrieved = (np.arange(len(ranked)) + 1)[last_of_tie]
    return float(np.sum(true / retrieved * np.diff(true, prepend=0) / true[-1]))


def _published_loudness(
    level: Float[np.ndarray, " A"], onsets: Int[np.ndarray, " onsets"]
) -> dict[int, float]:
    """Return `loudness` by onset, as published: a span that starts before the clip is an error."""
    if np.any(onsets < NEARBY):
        raise ValueError(
            "the published onset score stops at an onset in the first 50 ms"
            f" (here {onsets.min() / RATE:.3f} s): leave the clip out, or use score_onsets"
        )
    return {int(o): float(p) for o, p in zip(onsets, loudness(level, onsets), strict=True)}


def _suppress_published(confidence: dict[int, float]) -> list[int]:
    """Suppress onsets as published: dropping one skips the next, which then survives."""
    onsets = list(confidence)
    remaining, kept = list(onsets), []
    for i in np.argsort(list(confidence.values()))[::-1]:
        current = onsets[i]
        if current not in remaining:
            continue
        kept.append(current)
        remaining.remove(current)
        at = 0
        while at < len(remaining):
            if abs(current - remaining[at]) < APART:
                del remaining[at]
            at += 1  # also after a deletion: the fault
    return sorted(kept)


def _score_published(
    kept: list[int],
    confidence: dict[int, float],
    targets: Shaped[np.ndarray, " targets"],
    window: float,
    level_of: Callable[[list[int], int], float],
) -> PublishedScore:
    """Score targets in time order; each takes the candidate of the highest `level_of(free, i)`."""
    if not kept and not len(targets):
        raise ValueError("no onsets on either side: the score is undefined, leave the clip out")
    free = list(kept)
    labels, scores = [], []
    for target in targets:
        near = [i for i, o in enumerate(free) if abs(o - target) < window * RATE]
        labels.append(1)
        if not near:
            scores.append(0.0)
            continue
        loudest = near[int(np.argsort([level_of(free, i) for i in near])[-1])]
        scores.append(confidence[free.pop(loudest)])
        if not free:
            break  # the fault: later targets are missing from the lists
    n_hit = len(kept) - len(free)
    labels += [0] * len(free)
    scores += [confidence[o] for o in free]
    retrieved = sum(s > 0 for s in scores)
    true = sum(label for label, s in zip(labels, scores, strict=True) if s > 0)
    return PublishedScore(
        accuracy=n_hit / len(targets) if len(targets) else 0.0,
        ap=average_precision(labels, scores),
        f1=2 * true / (retrieved + sum(labels)) if retrieved + sum(labels) else 0.0,
        kept=tuple(kept),
        hits=tuple(int(o not in free) for o in kept),
        labels=tuple(labels),
        scores=tuple(scores),
    )
