"""Labels of Foley clips, read from the JSON beside each clip."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mfm_jax.data.clips import Clip
from mfm_jax.data.records import Field
from mfm_jax.data.sources import Labels
from mfm_jax.foley.scene import KINDS, MATERIALS
from mfm_jax.typing import Float

ONSETS = 32
"""Onset times that are kept of a window; the hard grade has up to 15 in 2.56 s."""

_NAMES = tuple(material.name for material in MATERIALS)


@dataclass(frozen=True)
class FoleyLabels(Labels):
    """Materials, kinds of motion and times of contact."""

    def fields(self) -> Mapping[str, Field]:
        return {
            "material": Field((), "int32"),
            "kind": Field((), "int32"),
            "materials": Field((len(MATERIALS),), "float32"),
            "kinds": Field((len(KINDS),), "float32"),
            "onsets": Field((ONSETS,), "float32"),
            "onset_materials": Field((ONSETS,), "int32"),
        }

    def of(self, clip: Clip, seconds: float) -> dict[str, np.ndarray]:
        """Return the labels of the first `seconds` of a clip from the JSON beside it.

        `materials` and `kinds` are float32 and have a 1 for each entry of `MATERIALS` and `KINDS`
        that is present. `material` and `kind` are the indices of the first body. `onsets` are the
        times of the first 32 contacts in seconds, and `onset_materials` their materials' indices;
        both are filled up with -1. Without a JSON all labels are zeros or -1.
        """
        file = clip.path.with_suffix(".json")
        record = json.loads(file.read_text()) if file.exists() else {}
        material, kind = record.get("material"), record.get("kind")
        contacts = [(event["time"] - clip.start, event) for event in record.get("events", [])]
        contacts = [(time, event) for time, event in contacts if 0 <= time < seconds][:ONSETS]
        onsets = np.full(ONSETS, -1, np.float32)
        onsets[: len(contacts)] = [time for time, _ in contacts]
        onset_materials = np.full(ONSETS, -1, np.int32)
        onset_materials[: len(contacts)] = [
            _index(_NAMES, event["material"]) for _, event in contacts
        ]
        return {
            "material": np.array(_index(_NAMES, material), np.int32),
            "kind": np.array(_index(KINDS, kind), np.int32),
            # Records that are older than the hard grade describe a single body.
            "materials": _present(_NAMES, record.get("materials", [material])),
            "kinds": _present(KINDS, record.get("kinds", [kind])),
            "onsets": onsets,
            "onset_materials": onset_materials,
        }


def _index(names: Sequence[str], name: str | None) -> int:
    return names.index(name) if name in names else -1


def _present(names: Sequence[str], present: Sequence[str | None]) -> Float[np.ndarray, " names"]:
    return np.array([name in present for name in names], np.float32)
