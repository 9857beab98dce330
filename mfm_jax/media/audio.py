"""Turn waveforms into the spectrograms that the audio networks read, and write files of sound.

Every front end takes 16 kHz mono samples in [-1, 1] and is a pure function of them.
"""

import io
from functools import cache
from pathlib import Path

import numpy as np

from mfm_jax.storage.files import atomic_write
from mfm_jax.typing import Array, Float

RATE = 16_000
"""Samples per second of every network here."""

FBANK_MELS, FBANK_WINDOW, FBANK_HOP, FBANK_FFT = 128, 400, 160, 512
"""Kaldi's frames of 25 ms every 10 ms, in samples."""

FBANK_FLOOR = 1.1920929e-07
"""Kaldi clamps energies here (the float32 epsilon) before the logarithm."""

FBANK_MEAN, FBANK_SPREAD = -4.2677393, 2 * 4.5689974
"""AudioMAE's normalisation: the mean, and twice the standard deviation, over AudioSet."""

SEGMENT_MELS, SEGMENT_FFT, SEGMENT_FLOOR = 128, 1024, 1e-6
"""Synchformer's mel; its window, hop and normalisation are those of AudioMAE."""

SILENCE = -100.0
"""The level of digital silence, in dBFS."""


def level(wave: Float[np.ndarray, " A"]) -> float:
    """Return the RMS level of a sound in dBFS, at least `SILENCE`; full-scale squares have 0."""
    power = float(np.mean(np.square(wave, dtype=np.float64))) if len(wave) else 0.0
    return max(10 * float(np.log10(power)), SILENCE) if power else SILENCE


@cache
def mel_filters(
    mels: int, n_fft: int, fmin: float | int, fmax: float | int, rate: int = RATE
) -> Float[np.ndarray, "M bins"]:
    """Return triangles of unit area on Slaney's mel scale (linear below 1 kHz), as librosa does.

    `fmin`, `fmax` and `rate` are in Hz; there are `n_fft // 2 + 1` bins. The result is shared and
    read-only.
    """
    # 1 kHz is mel 15, a mel below it is 200/3 Hz, and 27 mels above it are a factor of 6.4.
    step = np.log(6.4) / 27

    lowest, highest = (
        hz * 3 / 200 if hz < 1000 else 15 + np.log(hz / 1000) / step for hz in (fmin, fmax)
    )
    points = np.linspace(lowest, highest, mels + 2)
    hz = np.where(points < 15, points * 200 / 3, 1000 * np.exp((points - 15) * step))
    bank = _triangles(hz, np.fft.rfftfreq(n_fft, 1 / rate)) * (2 / (hz[2:] - hz[:-2]))[:, None]
    bank.setflags(write=False)
    return bank


@cache
def kaldi_mel_filters() -> Float[np.ndarray, "M bins"]:
    """Return AudioMAE's 128 triangles of unit height, 20 Hz to 8 kHz, straight in mel, not in Hz.

    There is no Nyquist bin: Kaldi gives it no weight. Filter 3 lies between two bins and is empty.
    The result is shared and read-only.
    """

    def to_mel(hz):
        return 1127 * np.log1p(hz / 700)

    points = np.linspace(to_mel(20), to_mel(RATE / 2), FBANK_MELS + 2)
    bank = _triangles(points, to_mel(np.arange(FBANK_FFT // 2) * RATE / FBANK_FFT))
    bank.setflags(write=False)
    return bank


def _triangles(
    points: Float[np.ndarray, " corners"], at: Float[np.ndarray, " bins"]
) -> Float[np.ndarray, "M bins"]:
    """Triangle `m` rises from point `m` to 1 at point `m + 1` and falls to point `m + 2`."""
    left, peak, right = points[:-2, None], points[1:-1, None], points[2:, None]
    rising, falling = (at - left) / (peak - left), (right - at) / (right - peak)
    return np.maximum(0, np.minimum(rising, falling))


def _frames(wave, length: int, hop: int):
    """Return overlapping frames `[T, length]` of a numpy or jax array."""
    xp = wave.__array_namespace__()
    count = max(0, 1 + (wave.shape[0] - length) // hop)
    return wave[xp.arange(count)[:, None] * hop + xp.arange(length)[None, :]]


def _magnitudes(wave, n_fft: int, hop: int, padding: int):
    """Return STFT magnitudes: `padding` reflected samples at both ends, periodic Hann window."""
    xp = wave.__array_namespace__()
    frames = _frames(xp.pad(wave, padding, mode="reflect"), n_fft, hop)
    window = xp.asarray(np.hanning(n_fft + 1)[None, :-1], dtype=wave.dtype)
    return xp.abs(xp.fft.rfft(frames * window))


def mel_magnitudes(
    wave: Float[Array | np.ndarray, " A"],
    *,
    mels: int,
    n_fft: int,
    hop: int,
    fmin: float | int = 0,
    fmax: float | int = 8000,
) -> Float[Array | np.ndarray, "T {mels}"]:
    """Return spectrum magnitudes after mel filters, with the frames of `log_mel`: `A // hop`."""
    xp = wave.__array_namespace__()
    bank = xp.asarray(mel_filters(mels, n_fft, fmin, fmax).T, dtype=wave.dtype)
    return _magnitudes(wave, n_fft, hop, (n_fft - hop) // 2) @ bank


def log_mel(
    wave: Float[Array | np.ndarray, " A"],
    *,
    mels: int = 64,
    n_fft: int = 1024,
    hop: int = 160,
    fmin: float | int = 0,
    fmax: float | int = 8000,
) -> Float[Array | np.ndarray, "T {mels}"]:
    """Return AudioLDM2's mel: the natural log of magnitudes, at least 1e-5, in `A // hop` frames.

    Frame k is centred on the middle of the `hop` samples that the vocoder makes of it, as in
    AudioLDM's training (`mel_spectrogram_train` of utilities/data/dataset.py), not on their start.
    Takes and gives numpy or jax arrays; on jax arrays it can be compiled and differentiated.
    """
    xp = wave.__array_namespace__()
    magnitudes = mel_magnitudes(wave, mels=mels, n_fft=n_fft, hop=hop, fmin=fmin, fmax=fmax)
    return xp.log(xp.maximum(magnitudes, 1e-5))


def cavp_mel(wave: Float[np.ndarray, " A"], hop: int = 250) -> Float[np.ndarray, "128 T"]:
    """Return CAVP's spectrogram: 128 mels of 125-7600 Hz; [0, 1] is -100 to 0 dB relative to 10.

    4 s give 256 columns, 16 columns a video frame. The last sample is dropped first, as the
    original does, so that a whole number of hops gives no extra column.
    """
    magnitudes = _magnitudes(np.asarray(wave[:-1], np.float64), 1024, hop, 512)
    mel = mel_filters(128, 1024, 125, 7600) @ magnitudes.T
    decibels = 20 * np.log10(np.maximum(mel, 1e-5))
    return np.clip((decibels - 20 + 100) / 100, 0, 1).astype(np.float32)


def kaldi_fbank(
    wave: Float[np.ndarray, " A"], frames: int = 1024
) -> Float[np.ndarray, "{frames} 128"]:
    """Return AudioMAE's input: normalised Kaldi log-mel energies every 10 ms, `frames` of them.

    A wave of 10.24 s has 1022 frames. A shorter one is padded, with zeros before the
    normalisation; a longer one is cut.
    """
    wave = np.asarray(wave, np.float64)
    pieces = _frames(wave - wave.mean(), FBANK_WINDOW, FBANK_HOP)[:frames]
    pieces = pieces - pieces.mean(axis=1, keepdims=True)
    before = np.concatenate([pieces[:, :1], pieces[:, :-1]], axis=1)
    pieces = (pieces - 0.97 * before) * np.hanning(FBANK_WINDOW)
    power = np.abs(np.fft.rfft(pieces, FBANK_FFT)[:, :-1]) ** 2
    energies = np.log(np.maximum(power @ kaldi_mel_filters().T, FBANK_FLOOR))
    padded = np.pad(energies, ((0, frames - len(energies)), (0, 0)))
    return ((padded - FBANK_MEAN) / FBANK_SPREAD).astype(np.float32)


@cache
def htk_mel_filters() -> Float[np.ndarray, "M bins"]:
    """Return Synchformer's 128 triangles of unit height, 0 to 8 kHz, straight in Hz, as torchaudio.

    Their corners are equally far apart on HTK's mel scale. The result is shared and read-only.
    """
    points = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), SEGMENT_MELS + 2)
    hz = 700 * (10 ** (points / 2595) - 1)
    bank = _triangles(hz, np.fft.rfftfreq(SEGMENT_FFT, 1 / RATE))
    bank.setflags(write=False)
    return bank


def synchformer_mel(
    segment: Float[np.ndarray, " A"], columns: int = 66
) -> Float[np.ndarray, "{columns} 128"]:
    """Return what Synchformer's audio tower reads of one segment: normalised log-mel powers.

    The segment is reflected at its own edges, so it is cut first. 10240 samples have 65 columns
    every 10 ms; what is missing is padded with zeros before the normalisation.

    Raises:
        ValueError: the segment is too short to be reflected, or has more columns.
    """
    padding = FBANK_WINDOW // 2
    if len(segment) <= padding or len(segment) // FBANK_HOP + 1 > columns:
        raise ValueError(f"a segment of {len(segment)} samples does not make {columns} columns")
    wave = np.pad(np.asarray(segment, np.float64), padding, mode="reflect")
    # torchaudio puts the window of 25 ms in the middle of a frame of 1024 samples. Powers do not
    # depend on where in the frame it lies.
    pieces = _frames(wave, FBANK_WINDOW, FBANK_HOP) * np.hanning(FBANK_WINDOW + 1)[:-1]
    power = np.abs(np.fft.rfft(pieces, SEGMENT_FFT)) ** 2
    logs = np.log(power @ htk_mel_filters().T + SEGMENT_FLOOR)
    padded = np.pad(logs, ((0, columns - len(logs)), (0, 0)))
    return ((padded - FBANK_MEAN) / FBANK_SPREAD).astype(np.float32)


def prepare_for_audiomae(
    wave: Float[np.ndarray, " A"], samples: int
) -> Float[np.ndarray, " {samples}"]:
    """Cut to `samples`, remove the mean, scale the peak to 0.5, then pad with zeros at the end.

    AudioLDM2 does this to every training clip before its spectrograms. Silence stays silence.
    """
    wave = np.asarray(wave[:samples], np.float32)
    if len(wave):
        wave = wave - wave.mean()
        wave = wave / (np.abs(wave).max() + 1e-8) * 0.5
    return np.pad(wave, (0, samples - len(wave)))


def audiomae_input(
    wave: Float[np.ndarray, " A"], samples: int, frames: int
) -> Float[np.ndarray, "{frames} 128"]:
    """Return what AudioMAE reads of a sound of up to `samples`, the length of its window."""
    return kaldi_fbank(prepare_for_audiomae(wave, samples), frames)


def write_sound(path: Path, wave: Float[np.ndarray, " A"], rate: int = RATE) -> None:
    """Write a file of 16-bit samples, WAV or FLAC by its suffix; beyond [-1, 1] they are clipped.

    Raises:
        WriteError: `path` cannot be written.
    """
    import soundfile

    file = io.BytesIO()  # soundfile itself does not report a full disk
    form = path.suffix[1:].upper()
    soundfile.write(file, np.clip(wave, -1, 1), rate, subtype="PCM_16", format=form)
    with atomic_write(path) as part:
        # A view of the buffer would stay in the traceback of an error, and Python 3.12.1 crashes
        # when it collects one.
        part.write_bytes(file.getvalue())
