"""The figures of a report: definition, the direction that is better, and the clips they need.

`docs/evaluate.md` tells the definitions at length, with the published scripts that they come from.
"""

from typing import NamedTuple

MEANS = 30
"""Clips below which the interval of a mean is too narrow."""


class Metric(NamedTuple):
    """A figure of the report."""

    key: str
    label: str
    group: str
    better: str  # "higher", "lower", or "" where neither is
    unit: str
    about: str
    clips: int = MEANS  # fewest clips for a figure that can be relied on
    per_clip: bool = True  # a mean over clips; else a score of the whole set
    digits: int = 3
    main: bool = True  # a column of the page's table, and part of a clip's rank
    alone: bool = False  # needs no reference, so that the reference has it too


TIMING, SPECTRUM, LEVEL = "Timing", "Spectrum", "Level"
NETWORKS, PUBLISHED = "Networks", "As published scripts compute it"

_WINDOW = (
    "An onset counts as hit within {} s of one of the real sound{}. Detector: librosa's, delta 0.3."
)
_A, _B = _WINDOW.format("0.1", " (CondFoleyGen's)"), _WINDOW.format("0.3", " (MMAudio's)")

SIGNAL = (
    Metric("onset_f1_100", "Onset F1, 0.1 s", TIMING, "higher", "", _A),
    Metric("onset_accuracy_100", "Onset accuracy, 0.1 s", TIMING, "higher", "",
           f"Share of the real onsets that were hit, a recall. {_A}", main=False),
    Metric("onset_ap_100", "Onset AP, 0.1 s", TIMING, "higher", "",
           f"Average precision, onsets ranked by loudness. {_A}", main=False),
    Metric("onset_f1_300", "Onset F1, 0.3 s", TIMING, "higher", "",
           f"Not comparable with 0.1 s. {_B}", main=False),
    Metric("onset_accuracy_300", "Onset accuracy, 0.3 s", TIMING, "higher", "",
           f"Share of the real onsets that were hit, a recall. {_B}", main=False),
    Metric("onset_ap_300", "Onset AP, 0.3 s", TIMING, "higher", "",
           f"Average precision, onsets ranked by loudness. {_B}", main=False),
    Metric("av_align", "AV-Align", TIMING, "higher", "",
           "Peaks of sound and of motion that coincide within one frame, over all peaks. It "
           "depends on the frame rate.", alone=True),
    Metric("envelope_correlation", "Envelope correlation", TIMING, "higher", "",
           "Correlation of the RMS levels in 10 ms frames."),
    Metric("envelope_lag", "Envelope lag", TIMING, "lower", "s",
           "Shift, in either direction and up to 0.5 s, at which the envelopes fit best.",
           main=False),
    Metric("mrstft", "Multi-resolution STFT", SPECTRUM, "lower", "",
           "Spectral convergence and log-magnitude distance at three resolutions, 16 kHz."),
    Metric("lsd", "Log-spectral distance", SPECTRUM, "lower", "",
           "Decades of power, both sounds at peak 1, 16 kHz. Silent clips are left out.",
           main=False),
    Metric("psnr", "PSNR of mels", SPECTRUM, "higher", "dB",
           "On mels from -80 to 20 dB, 64 bins, 16 kHz; at most 100 dB.", digits=2, main=False),
    Metric("ssim", "SSIM of mels", SPECTRUM, "higher", "",
           "On the same mels, windows of 7 x 7."),
    Metric("loudness_gap", "Loudness error", LEVEL, "lower", "LU",
           "Difference of integrated loudness, in either direction (ITU-R BS.1770).", digits=2),
    Metric("loudness", "Loudness", LEVEL, "", "LUFS",
           "Integrated loudness; clips below -70 LUFS are left out.", digits=1, main=False,
           alone=True),
    Metric("silent", "Silence rate", LEVEL, "lower", "",
           "Share of clips below -60 dBFS RMS.", main=False, alone=True),
    Metric("clipped", "Clipping rate", LEVEL, "lower", "",
           "Share of clips with three samples in a row at full scale.", main=False, alone=True),
)  # fmt: skip
"""Scores of the files alone, without any network."""

DESYNC = Metric(
    "desync", "DeSync", TIMING, "lower", "s",
    "Offset that Synchformer hears, in either direction, in the first 8 s (av-benchmark). Shorter "
    "clips are left out.", alone=True,
)  # fmt: skip
"""The score of a bundle's Synchformer."""

CAVP = (
    Metric("cavp_cosine", "CAVP cosine", NETWORKS, "higher", "",
           "Cosine of picture and sound in CAVP's space, each the maximum over a piece as long as "
           "those of its training.", alone=True),
    Metric("cavp_moments", "CAVP cosine of moments", NETWORKS, "higher", "",
           "Mean cosine of each frame and the sound at its time.", main=False, alone=True),
    Metric("cavp_recall", "CAVP retrieval R@1", NETWORKS, "higher", "",
           "Share of clips whose sound is nearest to their own video, among up to 64.",
           main=False, alone=True),
)  # fmt: skip
"""Scores of a bundle's CAVP, where it has both towers."""

CNN14, MAE = "PANNs Cnn14", "AudioMAE"

LOGITS = (
    Metric("kl_cnn14", f"KL, {CNN14}", NETWORKS, "lower", "nats",
           "KL(real, generated) of the class distributions, softmax over 527 classes."),
    Metric("is_cnn14", f"Inception score, {CNN14}", NETWORKS, "higher", "",
           "exp of the mean KL to the average distribution, one split. It grows with the number of "
           "clips.", 1000, per_clip=False, main=False, alone=True),
)  # fmt: skip
"""Scores of a classifier's logits."""

LANGUAGE_OF_AUDIO = (
    Metric("loa_error", "LOA error", NETWORKS, "lower", "",
           "Mean squared error of LOA (pooled AudioMAE tokens), in variances of the real clips'."),
    Metric("loa_recall", "LOA retrieval R@1", NETWORKS, "higher", "",
           "Share of clips whose LOA is nearest to their own real clip's, among up to 64.",
           main=False),
)  # fmt: skip
"""Scores of LOA."""


def embedding_metrics(key: str, network: str, width: int) -> tuple[Metric, ...]:
    """Return the distances of sets of embeddings of one network, `width` wide."""
    return (
        Metric(f"fd_{key}", f"FD, {network}", NETWORKS, "lower", "",
               f"Frechet distance of Gaussians, {width} dimensions. Biased by the number of clips.",
               max(2 * width, 1000), per_clip=False, main=False),
        Metric(f"kid_{key}", f"KID, {network}", NETWORKS, "lower", "",
               "Squared MMD, kernel (x·y / D + 1)³, unbiased: may be slightly negative.",
               100, per_clip=False, digits=5, main=False),
        Metric(f"kad_{key}", f"KAD, {network}", NETWORKS, "lower", "",
               "100 x squared MMD with a Gaussian kernel (kadtk): its width is the median distance "
               "of the real clips. Unbiased: may be slightly negative.", 100, per_clip=False,
               main=False),
    )  # fmt: skip


def _published(key: str, label: str, better: str, about: str, **more) -> Metric:
    return Metric(key, label, PUBLISHED, better, "", about, main=False, **more)


PUBLISHED_SIGNAL = (
    _published("condfoley_accuracy", "Onset accuracy, CondFoleyGen", "higher",
               "First 2 s; takes the loudest instead of the nearest, with faulty suppression."),
    _published("condfoley_ap", "Onset AP, CondFoleyGen", "higher",
               "A silent clip scores 1; targets after the last prediction are ignored."),
    _published("mmaudio_accuracy", "Onset accuracy, MMAudio", "higher",
               "First 8 s, window 0.3 s, loudness from the signed wave."),
    _published("mmaudio_ap", "Onset AP, MMAudio", "higher", "With the same faults."),
    _published("mmaudio_f1", "Onset F1, MMAudio", "higher",
               "Ignores targets after the last prediction."),
    _published("av_align_published", "AV-Align, TempoTokens", "higher",
               "The first motion is repeated, so that frame 1 never peaks.", alone=True),
    _published("lsd_published", "LSD, audioldm_eval", "lower",
               "1120 samples are cut from the generated side only: identical clips score about 1."),
    _published("ssim_published", "SSIM, audioldm_eval", "higher",
               "Leaves out clips whose PSNR is infinite, which are the best ones."),
    _published("psnr_published", "PSNR, audioldm_eval", "higher",
               "Leaves out infinite values, which are the best ones.", digits=2),
)  # fmt: skip
"""Scores of published scripts whose definition differs from ours."""

PUBLISHED_LOGITS = (
    _published("kl_softmax_published", "KL softmax, audioldm_eval", "lower",
               "1e-6 inside the logarithm caps a clip at 13.8."),
    _published("kl_sigmoid_published", "KL sigmoid, audioldm_eval", "lower",
               "The term of absent classes is missing, so that it can be negative."),
    _published("is_published", "Inception score, ten parts", "higher",
               "Mean over ten shuffled parts: 1 at ten clips, undefined below.", clips=5000,
               per_clip=False, alone=True),
)  # fmt: skip


def published_fd(key: str, network: str, width: int) -> Metric:
    """Return the Frechet distance through a matrix root, as audioldm_eval and av-benchmark do."""
    return _published(
        f"fd_{key}_published", f"FD with sqrtm, {network}", "lower",
        "About 1e-5 off where clips are fewer than dimensions.", clips=max(2 * width, 1000),
        per_clip=False,
    )  # fmt: skip
