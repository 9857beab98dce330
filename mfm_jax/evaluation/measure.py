"""Score one clip without networks: the generated sounds of all systems beside the real one."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

import numpy as np

from mfm_jax.evaluation.clips import Sound
from mfm_jax.media.audio import RATE, level
from mfm_jax.media.loudness import SILENT, loudness
from mfm_jax.media.probe import probe
from mfm_jax.media.small_frames import small_frames
from mfm_jax.media.sounds import is_sound_file, read_sound, sound_rate
from mfm_jax.metrics import av_align, levels, onsets, similarity, spectra
from mfm_jax.metrics.flow import grey, mean_flow
from mfm_jax.typing import Float, Int, UInt8

DELTA = 0.3  # of the onset detector, in CondFoleyGen and MMAudio
PEAK_DELTA = 0.07  # of the peaks of sound in AV-Align (`av_align.audio_peaks`)
WINDOWS = {100: 0.1, 300: 0.3}  # s, by the number in the names of scores
BEST_PSNR = 100.0  # dB; of identical mels it is infinite, and a mean of infinity says nothing
FLOOR = 1e-3  # magnitude below which LSD hears silence: 105 dB under a sine at full scale
SIDE = 128  # pixels of the frames whose motion is measured
STRIP = 8  # frames in the picture of a clip


@dataclass(frozen=True)
class Wave:
    """A sound at its own rate and at those of the scores."""

    own: Float[np.ndarray, " A"]
    rate: int

    @classmethod
    def read(cls, sound: Sound, rate: int | None = None) -> "Wave":
        """Read a sound.

        Raises:
            MediaError: the file cannot be read or has no sound.
        """
        rate = rate or sound_rate(sound.path) or RATE  # a video without sound is told when read
        return cls(read_sound(sound.path, rate, sound.start, sound.seconds), rate)

    @property
    def seconds(self) -> float:
        """The length."""
        return len(self.own) / self.rate

    @cached_property
    def at_16k(self) -> Float[np.ndarray, " A"]:
        """The sound at the rate of the networks and spectra."""
        return _resampled(self.own, self.rate, RATE)

    @cached_property
    def at_22k(self) -> Float[np.ndarray, " A"]:
        """The sound at the rate of onset detection."""
        return _resampled(self.own, self.rate, onsets.RATE)

    @cached_property
    def strength(self) -> Float[np.ndarray, " T"]:
        """The onset strength, from which both scores of timing take their peaks."""
        return onsets.onset_strength(self.at_22k)

    @cached_property
    def onsets(self) -> Int[np.ndarray, " onsets"]:
        """Onsets in samples at 22050 Hz, detected as CondFoleyGen and MMAudio do."""
        return onsets.pick_peaks(self.strength, delta=DELTA) * onsets.HOP

    def first(self, seconds: float) -> "Wave":
        """Return the beginning of the sound."""
        return Wave(self.own[: round(seconds * self.rate)], self.rate)


@dataclass(frozen=True)
class Picture:
    """The motion of a video and a few of its frames."""

    flow: Float[np.ndarray, " T"]  # pixels of the video, between neighbouring frames
    fps: float
    strip: list[UInt8[np.ndarray, "H W 3"]]  # frames at equal distances, small
    source: Sound  # the file, or its part

    @classmethod
    def read(cls, sound: Sound) -> "Picture | None":
        """Read the picture of a file, or return None if it has only sound."""
        if is_sound_file(sound.path):
            return None
        info = probe(sound.path)
        end = min(info.seconds, sound.end or info.seconds)
        frames = max(1, round((end - sound.start) * info.fps))
        wanted = {int((i + 0.5) / STRIP * frames) for i in range(STRIP)}
        strip: list[np.ndarray] = []

        def greys():
            for number, frame in zip(
                count(), small_frames(sound.path, SIDE, sound.start, sound.end), strict=False
            ):
                if number in wanted:
                    strip.append(frame)
                yield grey(frame)

        scale = max(1.0, max(info.width, info.height) / SIDE)
        return cls(scale * mean_flow(greys()), info.fps, strip, sound)


@dataclass
class Measured:
    """The scores of a clip, and what its picture on the page needs."""

    name: str
    seconds: dict[str, float]  # by side: `reference` and the systems
    rates: dict[str, int]
    scores: dict[str, dict[str, float]]  # by side; nan where a score is undefined
    onsets: dict[str, list[float]]  # s, by side
    contacts: list[float] | None = None  # s, annotated or seen in the picture
    fps: float | None = None
    media: dict[str, str] = field(default_factory=dict)  # files of the page


def measure(
    name: str,
    reference: Wave,
    systems: Mapping[str, Wave],
    picture: Picture | None,
    *,
    annotated: Float[np.ndarray, " targets"] | None = None,
    published: bool = False,
) -> Measured:
    """Score a clip.

    Args:
        annotated: times of the true onsets in seconds; those of the real sound if None.
        published: whether to add what the published scripts compute where ours differ.
    """
    sides = {"reference": reference, **systems}
    targets = reference.onsets if annotated is None else annotated * onsets.RATE
    scores = {side: alone(wave, picture, published=published) for side, wave in sides.items()}
    for system, wave in systems.items():
        scores[system] |= compare(reference, wave, targets)
        if published:
            scores[system] |= compare_published(reference, wave, targets)
    return Measured(
        name,
        {side: wave.seconds for side, wave in sides.items()},
        {side: wave.rate for side, wave in sides.items()},
        scores,
        {side: (wave.onsets / onsets.RATE).tolist() for side, wave in sides.items()},
        None if annotated is None else annotated.tolist(),
        None if picture is None else picture.fps,
    )


def alone(wave: Wave, picture: Picture | None, *, published: bool = False) -> dict[str, float]:
    """Return the scores of a sound that need no other sound."""
    measured = loudness(wave.own, wave.rate)
    found = {
        "loudness": measured if measured > SILENT else float("nan"),
        "silent": float(level(wave.own) < levels.SILENT),
        "clipped": float(levels.is_clipped(wave.own)),
    }
    if picture is not None:
        heard = onsets.pick_peaks(wave.strength, delta=PEAK_DELTA) * onsets.HOP / onsets.RATE
        seen = av_align.video_peaks(picture.flow, picture.fps)
        found["av_align"] = _number(av_align.alignment(heard, seen, picture.fps))
        if published:
            seen = av_align.video_peaks_published(picture.flow, picture.fps)
            found["av_align_published"] = _number(av_align.alignment(heard, seen, picture.fps))
    return found


def compare(
    reference: Wave, wave: Wave, targets: Float[np.ndarray, " targets"] | Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Return the scores of a sound beside the real one; `targets` are samples at 22050 Hz."""
    found = {}
    for window, seconds in WINDOWS.items():
        score = onsets.score_onsets(wave.at_22k, wave.onsets, targets, window=seconds)
        values = (score.recall, score.ap, score.f1) if score is not None else (float("nan"),) * 3
        for key, value in zip(("accuracy", "ap", "f1"), values, strict=True):
            found[f"onset_{key}_{window}"] = value
    envelopes = (levels.envelope(w.at_16k, RATE) for w in (reference, wave))
    found["envelope_correlation"], lag = levels.envelope_agreement(*envelopes)
    found["envelope_lag"] = abs(lag)
    x, y = reference.at_16k, wave.at_16k
    found["mrstft"] = similarity.multi_resolution_stft(x, y)
    found["lsd"] = similarity.log_spectral_distance(x, y, floor=FLOOR)
    found |= _of_mels(x, y)
    loud = [loudness(w.own, w.rate) for w in (reference, wave)]
    found["loudness_gap"] = abs(loud[1] - loud[0]) if max(loud) > SILENT else float("nan")
    return found


def compare_published(
    reference: Wave, wave: Wave, targets: Float[np.ndarray, " targets"] | Int[np.ndarray, " n"]
) -> dict[str, float]:
    """Return what the published scripts compute; nan where they stop."""
    nan = float("nan")
    found = dict.fromkeys(
        ("condfoley_accuracy", "condfoley_ap", "mmaudio_accuracy", "mmaudio_ap", "mmaudio_f1"), nan
    )
    first, heard = reference.first(2.0), wave.first(2.0)
    # Where a script stops, the clip is left out of its score, and the number of clips tells that.
    with suppress(ValueError):
        score = onsets.condfoley_published(heard.at_22k, heard.onsets, first.onsets)
        found |= {"condfoley_accuracy": score.accuracy, "condfoley_ap": score.ap}
    heard = wave.first(8.0)
    with suppress(ValueError):
        score = onsets.mmaudio_published(heard.at_22k, heard.onsets, targets / onsets.RATE)
        found |= {
            "mmaudio_accuracy": score.accuracy, "mmaudio_ap": score.ap, "mmaudio_f1": score.f1
        }  # fmt: skip
    x, y = reference.at_16k, wave.at_16k
    cut = similarity.PUBLISHED_CUT
    found["lsd_published"] = similarity.log_spectral_distance(x, y, cut=cut)
    mels = _of_mels(x, y)
    infinite = mels["psnr"] >= BEST_PSNR
    found["psnr_published"] = nan if infinite else mels["psnr"]
    found["ssim_published"] = nan if infinite else mels["ssim"]
    return found


def _of_mels(x: Float[np.ndarray, " A"], y: Float[np.ndarray, " A2"]) -> dict[str, float]:
    """Return PSNR and SSIM, nan for sounds too short for a picture of 7 x 7."""
    try:
        mels = [spectra.unit_mel(wave) for wave in (x, y)]
        return {"psnr": min(similarity.psnr(*mels), BEST_PSNR), "ssim": similarity.ssim(*mels)}
    except ValueError:
        return {"psnr": float("nan"), "ssim": float("nan")}


def _resampled(wave: Float[np.ndarray, " A"], rate: int, wanted: int) -> Float[np.ndarray, " A2"]:
    if rate == wanted:
        return wave
    import soxr

    return soxr.resample(wave, rate, wanted, quality="HQ")


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
