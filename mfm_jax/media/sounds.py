"""Read the sound of a file at its own rate, whether it holds sound alone or a video."""

from pathlib import Path

import av
import numpy as np
import soxr

from mfm_jax.errors import MediaError
from mfm_jax.media.containers import check_is_file, main_audio, opened, reading
from mfm_jax.media.sandbox import sandboxed
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.typing import Float

SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
"""Suffixes of files of sound alone, in lower case."""


def is_sound_file(path: Path) -> bool:
    """Return whether the name of a file is that of sound alone."""
    return path.suffix.lower() in SUFFIXES


@sandboxed
def sound_rate(path: Path) -> int:
    """Return the samples per second of a file's sound, 0 if a video has none.

    Raises:
        MediaError: the file cannot be read.
    """
    if not is_sound_file(path):
        with opened(path) as (container, video), reading(path):
            sound = main_audio(container, video)
            known = isinstance(sound, av.AudioStream) and sound.codec_context is not None
            return sound.codec_context.sample_rate if known else 0  # type: ignore[union-attr]
    import soundfile

    check_is_file(path)
    try:
        return int(soundfile.info(str(path)).samplerate)
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from None


@sandboxed
def read_sound(
    path: Path, rate: int, start: float = 0.0, seconds: float | None = None
) -> Float[np.ndarray, " A"]:
    """Return the mean of the channels of a file's sound.

    Args:
        rate: samples per second of what is returned; at that of the file (`sound_rate`) samples
            are as they are there.
        seconds: the length wanted; less where the file ends before, all of it if None.

    Raises:
        MediaError: the file cannot be read, has no sound, or samples that are no numbers.
    """
    if is_sound_file(path):
        wave = _read_file(path, rate, start, seconds)
    else:
        found = read_audio(path, rate, start, seconds)
        if found is None:
            raise MediaError(f"{path} has no sound: leave it out")
        wave = found
    if not len(wave):
        raise MediaError(f"{path} has no sound from {start:g} s on: leave it out")
    if not np.isfinite(wave).all():
        raise MediaError(f"{path} has samples that are no numbers: write it again")
    return wave.astype(np.float32, copy=False)


def _read_file(
    path: Path, rate: int, start: float, seconds: float | None
) -> Float[np.ndarray, " A"]:
    import soundfile

    check_is_file(path)
    try:
        with soundfile.SoundFile(str(path)) as file:
            own, frames = file.samplerate, file.frames
            if seconds is not None:
                frames = min(round((start + seconds) * own), frames)
            begin = min(round(start * own), frames)
            file.seek(begin)
            samples = file.read(frames - begin, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise _unreadable(path, error) from None
    wave = samples.mean(axis=1)
    return wave if own == rate else soxr.resample(wave, own, rate, quality="HQ")


def _unreadable(path: Path, error: Exception) -> MediaError:
    reason = str(error).rsplit(":", 1)[-1].strip(" .").lower() or "unknown error"
    return MediaError(f"{path} is not a readable sound ({reason}): write it again as wav")
