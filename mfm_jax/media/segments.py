"""Cut frames and sound into the segments that Synchformer reads, each half of one after another."""

import numpy as np

from mfm_jax.media.audio import RATE, synchformer_mel
from mfm_jax.typing import Array, Float, Shaped


def segments(
    stream: Shaped[Array | np.ndarray, "T ..."], length: int
) -> Shaped[Array | np.ndarray, "S {length} ..."]:
    """Cut a stream into segments of `length`, each half a segment after the one before.

    What is left over at the end is dropped. Takes and gives numpy or jax arrays.

    Raises:
        ValueError: the stream is shorter than one segment.
    """
    count = segment_count(len(stream), length)
    if not count:
        raise ValueError(f"{len(stream)} are fewer than a segment of {length}")
    xp = stream.__array_namespace__()
    starts = [i * (length // 2) for i in range(count)]
    return xp.stack([stream[start : start + length] for start in starts])


def segment_count(size: int, length: int) -> int:
    """Return how many segments of `length` a stream of `size` gives."""
    return max(0, (size - length) // (length // 2) + 1)


def segment_samples(frames: int, fps: float) -> int:
    """Return the samples of a segment of `frames`: 10240 for 16 frames at 25 a second."""
    return round(frames / fps * RATE)


def mel_segments(
    wave: Float[np.ndarray, " A"], samples: int, columns: int = 66
) -> Float[np.ndarray, "S {columns} 128"]:
    """Return the log-mels of the segments of a sound, each of `samples`.

    Raises:
        ValueError: the sound is shorter than one segment.
    """
    return np.stack([synchformer_mel(piece, columns) for piece in segments(wave, samples)])
