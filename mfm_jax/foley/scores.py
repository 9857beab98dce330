"""Scores of sound for clips of known contacts: are they heard, when, and of what material?"""

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

BATCH = 128  # crops that the listener is given at once, for one shape
NEAR, WIDE = 0.05, 0.1  # s; how far a contact may be off
NOTHING = Counts()


@dataclass(frozen=True)
class Contacts:
    """The seconds of contacts, rising, and the material of each."""

    times: Float[np.ndarray, " S"]
    materials: tuple[str, ...]


@dataclass(frozen=True)
class Heard:
    """What was heard of one clip or, added up, of many."""

    near: Counts = NOTHING  # contacts within 50 ms
    wide: Counts = NOTHING  # within 100 ms
    events: Counts = NOTHING  # within 100 ms and of the right material
    named: Counts = NOTHING  # materials of the clip named rightly, over its contacts together
    log_mel: float = 0.0  # summed distance to the true sound; nats, mean over frames and bins
    clips: int = 0
    seconds: float = 0.0  # of sound

    def __add__(self, other: "Heard") -> "Heard":
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in fields(self))
        return Heard(*(a + b for a, b in pairs))

    def scores(self) -> dict[str, float]:
        """The figures that tables show."""
        return {
            "onset_f1_50": self.near.f1,
            "onset_f1_100": self.wide.f1,
            "material": self.named.hits / max(self.named.true, 1),
            "event_f1": self.events.f1,
            "log_mel": self.log_mel / max(self.clips, 1),
            "onsets_per_second": self.wide.found / max(self.seconds, 1e-9),
        }


@dataclass
class _Clip:
    """A clip between detection and naming."""

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
    """Score each sound at 16 kHz against the contacts that its clip shows.

    Where the true sound is given, the distance to it is measured as well.

    A clip without a contact that was found has named no material. Both sounds are cut to the
    shorter one for their distance, and what is below -6 nats counts as silence in it.
    """
    clips, heard = [], []
    for wave, truth, true in zip(waves, truths, true_waves, strict=True):
        mel = np.asarray(log_mel(np.asarray(wave, np.float32)))
        found = detect_contacts(mel)
        distance = 0.0 if true is None else mel_distance(mel, np.asarray(log_mel(true)))
        clips.append(_Clip(found, truth, distance, len(wave) / 16_000))
        heard.append(crops(mel, found))
    rows = iter(_chances(listener, np.concatenate(heard)))
    for clip in clips:
        clip.chances = [next(rows) for _ in clip.found]
    return [_score(clip, listener.config.materials) for clip in clips]


def listen(listener: Listener, wave: Float[np.ndarray, " A"]) -> Contacts:
    """The contacts that are heard in a sound at 16 kHz, and what each sounds like."""
    mel = np.asarray(log_mel(np.asarray(wave, np.float32)))
    found = detect_contacts(mel)
    names = _chances(listener, crops(mel, found)).argmax(axis=1)
    return Contacts(found, tuple(listener.config.materials[i] for i in names))


def mel_distance(a: Float[np.ndarray, "T M"], b: Float[np.ndarray, "T2 M"]) -> float:
    """Mean absolute difference of two log-mels in nats, silence being all alike."""
    frames = min(len(a), len(b))
    a, b = (np.maximum(x[:frames], QUIET) for x in (a, b))
    return float(np.abs(a - b).mean())


def _score(clip: _Clip, names: tuple[str, ...]) -> Heard:
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
    """The chance of each material for each crop, computed in batches of one shape."""
    parts = [np.zeros((0, len(listener.config.materials)), np.float32)]
    for start in range(0, len(heard), BATCH):
        batch = heard[start : start + BATCH]
        padded = np.pad(batch, ((0, BATCH - len(batch)), (0, 0), (0, 0)))
        parts.append(np.asarray(_listen(listener, padded))[: len(batch)])
    return np.concatenate(parts)
