"""The published scores once more, written from tests/reference/metrics/SPEC.md without our code.

Each is the shortest form of its definition, in torch, scipy or plain loops, however slow.
"""

from functools import cache

import numpy as np
import torch
from scipy.linalg import sqrtm
from scipy.ndimage import uniform_filter
from torch.nn import functional

ONSET_RATE, HOP = 22_050, 512


def spectrogram(wave, n_fft, hop, pad):
    """Return magnitudes `[bins, T]` of a centred STFT with a periodic Hann window, in float64."""
    window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
    signal = torch.as_tensor(np.asarray(wave, np.float64))
    found = torch.stft(
        signal, n_fft, hop, window=window, center=True, pad_mode=pad, return_complex=True
    )
    return found.abs().numpy()


@cache
def slaney_filters(rate, n_fft, mels, low, high):
    """Return triangles of unit area on Slaney's mel scale, one band after the other."""

    def mel(hz):
        return hz * 3 / 200 if hz < 1000 else 15 + np.log(hz / 1000) * 27 / np.log(6.4)

    def hz(mel):
        return mel * 200 / 3 if mel < 15 else 1000 * np.exp((mel - 15) * np.log(6.4) / 27)

    edges = [hz(m) for m in np.linspace(mel(low), mel(high), mels + 2)]
    bins = np.arange(n_fft // 2 + 1) * rate / n_fft
    bank = np.zeros((mels, len(bins)))
    for i, (left, centre, right) in enumerate(zip(edges, edges[1:], edges[2:], strict=False)):
        corners = np.interp(bins, [left, centre, right], [0, 1, 0], left=0, right=0)
        bank[i] = corners * 2 / (right - left)
    return bank


def frechet_distance(x, y):
    sx, sy = (np.cov(a.astype(np.float64), rowvar=False) for a in (x, y))
    shift = x.mean(axis=0, dtype=np.float64) - y.mean(axis=0, dtype=np.float64)
    return shift @ shift + np.trace(sx + sy - 2 * sqrtm(sx @ sy).real)


def kl_softmax(reference, generated, epsilon=0.0):
    p, q = (torch.tensor(a).double().softmax(dim=1) for a in (reference, generated))
    return functional.kl_div((q + epsilon).log(), p, reduction="none").sum(dim=1).numpy()


def kl_sigmoid(reference, generated, epsilon=0.0):
    p, q = (torch.tensor(a).double().sigmoid() for a in (reference, generated))
    return functional.kl_div((q + epsilon).log(), p, reduction="none").sum(dim=1).numpy()


def kl_bernoulli(reference, generated):
    reference, generated = (torch.tensor(a).double() for a in (reference, generated))
    p = reference.sigmoid()
    cross, own = (
        functional.binary_cross_entropy_with_logits(a, p, reduction="none").sum(dim=1)
        for a in (generated, reference)
    )
    return (cross - own).numpy()


def inception_score(logits):
    p = torch.tensor(logits).double().softmax(dim=1)
    mean = torch.distributions.Categorical(p.mean(dim=0))
    each = [torch.distributions.kl_divergence(torch.distributions.Categorical(q), mean) for q in p]
    return float(torch.stack(each).mean().exp())


def inception_score_published(logits):
    shuffled = logits[np.random.RandomState(2020).permutation(len(logits))]
    n = len(logits)
    parts = [inception_score(shuffled[i * n // 10 : (i + 1) * n // 10]) for i in range(10)]
    return np.mean(parts), np.std(parts)


def squared_mmd(x, y, kernel):
    """Return the unbiased estimate, pair by pair."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    within = [
        np.mean([kernel(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j])
        for a in (x, y)
    ]
    return sum(within) - 2 * np.mean([kernel(a, b) for a in x for b in y])


def kid(x, y):
    return squared_mmd(x, y, lambda a, b: (a @ b / len(a) + 1) ** 3)


def kad(x, y):
    width = float(torch.pdist(torch.tensor(x).double()).median())
    gamma = 1 / (2 * width**2 + 1e-8)
    return 100 * squared_mmd(x, y, lambda a, b: np.exp(-gamma * ((a - b) ** 2).sum()))


def onset_strength(wave):
    """Return librosa 0.11's strength of a wave at 22050 Hz."""
    power = spectrogram(wave, 2048, HOP, "constant") ** 2
    decibels = 10 * np.log10(
        np.maximum(slaney_filters(ONSET_RATE, 2048, 128, 0, ONSET_RATE / 2) @ power, 1e-10)
    )
    decibels = np.maximum(decibels, decibels.max() - 80)
    strength = np.zeros(decibels.shape[1])
    for t in range(3, len(strength)):
        strength[t] = np.mean(np.maximum(0, decibels[:, t - 2] - decibels[:, t - 3]))
    return strength


def onsets(strength, delta):
    """Return librosa 0.11's onsets in samples."""
    if strength.max() == strength.min():
        return []
    curve = (strength - strength.min()) / (strength.max() - strength.min())
    found = []
    for t in range(len(curve)):
        highest = curve[t] == max(curve[max(0, t - 1) : t + 1])
        above = curve[t] >= np.mean(curve[max(0, t - 4) : t + 5]) + delta
        if highest and above and (not found or t > found[-1] + 1):
            found.append(t)
    return [HOP * t for t in found]


def average_precision(labels, scores):
    """Return scikit-learn's, one threshold after the other."""
    total, value, before = sum(labels), 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        taken = [label for label, score in zip(labels, scores, strict=True) if score >= threshold]
        value += sum(taken) / len(taken) * (sum(taken) - before) / total if total else 0.0
        before = sum(taken)
    return value


def right_scores(wave, predicted, targets, window):
    """Return recall, AP and F1 of the right variant in SPEC.md, section 7."""
    peak = {o: np.abs(wave[max(0, o - 1102) : o + 1102]).max() for o in predicted}
    loudest_first = sorted(predicted, key=lambda o: (-peak[o], o))
    kept = []
    for o in loudest_first:
        if not [k for k in kept if abs(o - k) < 1102.5]:
            kept.append(o)
    free, hits = list(targets), []
    for o in kept:
        near = [t for t in free if abs(t - o) < window * ONSET_RATE]
        if near:
            free.remove(min(near, key=lambda t: abs(t - o)))
        hits.append(bool(near))
    ap = sum(np.mean(hits[: i + 1]) for i, hit in enumerate(hits) if hit) / len(targets)
    precision, recall = np.mean(hits) if hits else 0.0, sum(hits) / len(targets)
    f1 = 2 * precision * recall / (precision + recall) if any(hits) else 0.0
    return recall, ap, f1


def published_scores(level, predicted, targets, window, *, shifted_level):
    """Return accuracy, AP and F1 as CondFoleyGen and MMAudio do (SPEC.md, sections 1 and 2).

    Args:
        level: of every sample, as the script scales it.
        shifted_level: MMAudio's fault M3: a candidate's level is read from the full list.
    """
    confidence = {o: level[o - 1102 : o + 1102].max() for o in predicted}
    remaining, kept = list(predicted), []
    for o in [predicted[i] for i in np.argsort([confidence[o] for o in predicted])[::-1]]:
        if o in remaining:
            kept.append(o)
            remaining.remove(o)
            for other in remaining:  # the fault: what follows a removed one is skipped
                if abs(o - other) < 0.05 * ONSET_RATE:
                    remaining.remove(other)
    kept = sorted(kept)
    free, labels, scores = list(kept), [], []
    for target in targets:
        near = [i for i, o in enumerate(free) if abs(o - target) < window * ONSET_RATE]
        labels.append(1)
        if near:
            loud = [level[(kept if shifted_level else free)[i]] for i in near]
            scores.append(confidence[free.pop(near[np.argsort(loud)[-1]])])
            if not free:
                break
        else:
            scores.append(0)
    hits = len(kept) - len(free)
    labels += [0] * len(free)
    scores += [confidence[o] for o in free]
    positive = [s > 0 for s in scores]
    true = sum(1 for label, p in zip(labels, positive, strict=True) if label and p)
    f1 = 2 * true / (sum(positive) + sum(labels)) if sum(positive) + sum(labels) else 0.0
    accuracy = hits / len(targets) if len(targets) else 0.0
    return accuracy, average_precision(labels, scores), f1


def av_align(audio, video, fps):
    free, matched = list(video), 0
    for a in audio:
        near = [v for v in free if abs(a - v) < 1 / fps]
        if near:
            free.remove(near[0])
            matched += 1
    return matched / (len(audio) + len(video) - matched)


def unit_mel(wave):
    mel = slaney_filters(16_000, 512, 64, 50, 8000) @ spectrogram(wave, 512, 160, "reflect")
    return np.clip((20 * np.log10(np.maximum(mel, 1e-5)) - 20 + 100) / 100, 0, 1)


def cnn14_log_mel(wave):
    power = spectrogram(wave, 512, 160, "reflect") ** 2
    return 10 * np.log10(np.maximum(slaney_filters(16_000, 512, 64, 50, 8000) @ power, 1e-10)).T


def psnr(x, y):
    return 10 * np.log10(1 / ((x - y) ** 2).mean())


def ssim(x, y):
    """Return scikit-image's, which filters as scipy does."""

    def mean(picture):
        return uniform_filter(picture, 7)[3:-3, 3:-3]

    span = max(x.max(), y.max()) - min(x.min(), y.min())
    ux, uy = mean(x), mean(y)
    vx, vy, vxy = (49 / 48 * (mean(a * b) - mean(a) * mean(b)) for a, b in ((x, x), (y, y), (x, y)))
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    top, bottom = (2 * ux * uy + c1) * (2 * vxy + c2), (ux**2 + uy**2 + c1) * (vx + vy + c2)
    return (top / bottom).mean()


def lsd_pair(reference, generated, cut):
    """Return the linear spectrograms that LSD and its SSIM compare, `[bins, T]`."""
    generated = generated[cut:]
    pair = [a - a.mean() for a in (reference, generated)]
    size = len(pair[1])
    return [spectrogram((a / np.abs(a).max())[:size], 743, 160, "constant") for a in pair]


def lsd(target, estimate):
    ratio = np.log10(target**2 / (estimate + 1e-12) ** 2 + 1e-12)
    return np.mean(np.sqrt(np.mean(ratio**2, axis=0)))


def mrstft(reference, generated):
    parts = []
    for window, hop in ((512, 50), (1024, 120), (2048, 240)):
        x, y = (
            np.maximum(spectrogram(a, window, hop, "constant"), 1e-7)
            for a in (reference, generated)
        )
        parts.append(np.linalg.norm(x - y) / np.linalg.norm(x) + np.abs(np.log(x / y)).mean())
    return np.mean(parts)


def envelope_correlation(reference, generated):
    levels = [
        np.sqrt((a.reshape(-1, 160).astype(np.float64) ** 2).mean(axis=1))
        for a in (reference, generated)
    ]
    return np.corrcoef(*levels)[0, 1]
