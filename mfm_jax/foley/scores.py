"""Scores of sound for clips with known contacts: their times and their materials."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import jax
import numpy as np

from mfm_jax.foley.contacts import (
    QUIET,
    Counts,
    count_hits,
    crops,
    detect_contacts,
    name_materials,
)
from mfm_jax.media.audio import log_mel
from mfm_jax.models.listener import Listener
from mfm_jax.typing import Array, Float

BATCH = 128  # crops that the listener reads at once; always as many, for one shape
NEAR, WIDE = 0.05, 0.1  # s; largest error in the time of a contact
NOTHING = Counts()


@dataclass(frozen=True)
class Contacts:
    """Times of contacts in seconds, in ascending order, and the material of each."""

    times: Float[np.ndarray, " S"]
    materials: tuple[str, ...]


@dataclass(frozen=True)
class Heard:
    """Counts for the sound of one clip; `+` adds up clips."""

    near: Counts = NOTHING  # contacts within 50 ms
    wide: Counts = NOTHING  # within 100 ms
    events: Counts = NOTHING  # within 100 ms and of the right material
    named: Counts = NOTHING  # materials of the clip, named from all of its contacts together
    log_mel: float = 0.0  # distance to the true sound in nats, a mean over frames and bins
    clips: int = 0
    seconds: float = 0.0  # length of the sound

    def __add__(self, other: "Heard") -> "Heard":
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Heard(*(a + b for a, b in pairs))

    def scores(self) -> dict[str, float]:
        """Return the scores that tables show."""
        return {
            "onset_f1_50": self.near.f1,
            "onset_f1_100": self.wide.f1,
            "material": self.named.hits / max(self.named.true, 1),
            "event_f1": self.events.f1,
            "log_mel": self.log_mel / max(self.clips, 1),
            "onsets_per_second": self.wide.found / max(self.seconds, 1e-9),
        }


@dataclass
class _Detected:
    """A clip whose contacts are detected but whose materials are not named yet."""

    found: Float[np.ndarray, " N"]
    truth: Contacts
    distance: float
    seconds: float
    chances: list[Float[np.ndarray, " V"]] = field(default_factory=list)


def score_waves(
    listener: Listener,
    waves: Sequence[Float[np.ndarray, " A"]],
    truths: Sequence[Contacts],
    true_waves: Sequence[Float[np.ndarray, " A2"] | None],
) -> list[Heard]:
    """Score sounds at 16 kHz against the true contacts of their clips.

    If the true sound is given, its distance is measured as well: both are cut to the length of the
    shorter one, and everything below -6 nats counts as silence. A sound without detected contacts
    names no material.
    """
    clips, heard = [], []
    for wave, truth, true in zip(waves, truths, true_waves, strict=True):
        mel = np.asarray(log_mel(np.asarray(wave, np.float32)))
        found = detect_contacts(mel)
        distance = 0.0 if true is None else mel_distance(mel, np.asarray(log_mel(true)))
        clips.append(_Detected(found, truth, distance, len(wave) / 16_000))
        heard.append(crops(mel, found))
    rows = iter(_chances(listener, np.concatenate(heard)))
    for clip in clips:
        clip.chances = [next(rows) for _ in clip.found]
    return [_score(clip, listener.config.materials) for clip in clips]


def listen(listener: Listener, wave: Float[np.ndarray, " A"]) -> Contacts:
    """Detect the contacts in a sound at 16 kHz and name the material of each."""
    mel = np.asarray(log_mel(np.asarray(wave, np.float32)))
    found = detect_contacts(mel)
    names = _chances(listener, crops(mel, found)).argmax(axis=1)
    return Contacts(found, tuple(listener.config.materials[i] for i in names))


def mel_distance(a: Float[np.ndarray, "T M"], b: Float[np.ndarray, "T2 M"]) -> float:
    """Return the mean absolute difference of two log-mels in nats; all silence is equal."""
    frames = min(len(a), len(b))
    a, b = (np.maximum(x[:frames], QUIET) for x in (a, b))
    return float(np.abs(a - b).mean())


def _score(clip: _Detected, names: tuple[str, ...]) -> Heard:
    found, times = clip.found, clip.truth.times
    true = np.array([names.index(name) for name in clip.truth.materials], int)
    chances = np.array(clip.chances).reshape(len(found), len(names))
    there = set(true.tolist())
    named = set(name_materials(chances, len(there)).tolist()) if len(found) else set()
    return Heard(
        near=count_hits(found, times, NEAR),
        wide=count_hits(found, times, WIDE),
        events=count_hits(found, times, WIDE, chances.argmax(axis=1), true),
        named=Counts(len(there & named), len(named), len(there)),
        log_mel=clip.distance,
        clips=1,
        seconds=clip.seconds,
    )


@jax.jit
def _listen(listener: Listener, batch: Array) -> Float[Array, "B V"]:
    return jax.nn.softmax(listener(batch))


def _chances(listener: Listener, heard: Float[np.ndarray, "N T M"]) -> Float[np.ndarray, "N V"]:
    """Return the chance of each material for each crop, computed in batches of one shape."""
    parts = [np.zeros((0, len(listener.config.materials)), np.float32)]
    for start in range(0, len(heard), BATCH):
        batch = heard[start : start + BATCH]
        padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0)))
        parts.append(np.asarray(_listen(listener, padded))[: len(batch)])
    return np.concatenate(parts)
