"""AV-Align: the share of sound and motion peaks that coincide (TempoTokens av_align.py).

The score is an intersection over union of peaks. Motion is the mean length of the optical flow
between neighbouring frames (:126-132, Farneback's flow from OpenCV: pyr_scale .5, levels 3, winsize
15, iterations 3, poly_n 5, poly_sigma 1.2). The flow is an input here, OpenCV is not needed.
"""

import numpy as np

from mfm_jax.metrics.onsets import RATE, detect_onsets
from mfm_jax.typing import Float

FAINTEST = 0.1  # pixels per frame; weaker motion has no peaks. Depends on the frame size.


def audio_peaks(wave: Float[np.ndarray, " A"]) -> Float[np.ndarray, " peaks"]:
    """Return the onsets in seconds of a wave at 22050 Hz, at librosa's default delta 0.07 (:60-65).

    At this threshold noise at the start of a clip often counts as a first onset near 70 ms.
    """
    return detect_onsets(wave, delta=0.07) / RATE


def video_peaks(flow: Float[np.ndarray, " T"], fps: float) -> Float[np.ndarray, " peaks"]:
    """Return the seconds at which the motion peaks; `flow[i]` is that from frame i to i + 1.

    A peak is at least 0.1 and strictly above both neighbours, so a plateau has none; the motion
    before the first frame counts as zero. The last frame never peaks.
    """
    return _peaks(np.concatenate([[0.0], flow]), fps)


def video_peaks_published(flow: Float[np.ndarray, " T"], fps: float) -> Float[np.ndarray, " peaks"]:
    """Return `video_peaks` with the first motion repeated (:88-108): frame 1 never peaks."""
    return _peaks(np.concatenate([flow[:1], flow]), fps)


def alignment(
    audio: Float[np.ndarray, " audio"], video: Float[np.ndarray, " video"], fps: float
) -> float | None:
    """Return matched peaks / all peaks, given times in seconds; AV-Align is the mean over clips.

    TempoTokens av_align.py:154-161, 186. Each sound peak in order takes the first free video peak
    less than one frame away. Since the tolerance is one frame of the video, state the frame rate
    with the score: 50 ms is a miss at 25 fps and a hit at 15. None without any peaks, where the
    original divides by zero.
    """
    if not len(audio) and not len(video):
        return None
    free = list(video)
    for time in audio:
        near = [i for i, t in enumerate(free) if abs(t - time) < 1.0 / fps]
        if near:
            del free[near[0]]
    matched = len(video) - len(free)
    return matched / (len(audio) + len(video) - matched)


def _peaks(trajectory: Float[np.ndarray, " T"], fps: float) -> Float[np.ndarray, " peaks"]:
    before, here, after = trajectory[:-2], trajectory[1:-1], trajectory[2:]
    return (np.flatnonzero((here > before) & (here > after) & (here >= FAINTEST)) + 1) / fps
