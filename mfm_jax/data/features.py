"""Cached features: video tokens, AudioMAE tokens and latents of each clip.

`mfm_jax.inference.extract` writes them; training reads them.
"""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mfm_jax.bundle import Bundle, format2
from mfm_jax.data.clips import DataError
from mfm_jax.data.records import UNFINISHED, RecordSource, check_same, digest, read_about
from mfm_jax.encoders import ENCODERS, component_of, open_encoders, window_spec
from mfm_jax.runtime.config import to_json

SOUND_ENCODERS = ("audiomae", "vae")
"""Components that read sound and whose outputs are stored, beside those of the video encoders."""

WITH_WEIGHTS = (*(name for name in ENCODERS if component_of(name) == name), *SOUND_ENCODERS)
"""The encoders that a bundle may have as components of their own."""

DESCRIPTION = "features.json"
"""Written last: a folder of features with it is complete."""


def bundled(bundle: Bundle) -> list[str]:
    """Return the encoders that a bundle has as components of their own."""
    return [name for name in WITH_WEIGHTS if name in bundle.entries]


def describe(
    bundle: Bundle, timechat: str, encoders: Iterable[str] | None = None
) -> dict[str, Any]:
    """Describe what features depend on: the encoders' weights, and how clips are decoded.

    Args:
        timechat: which of TimeChat's tokens they have.
        encoders: those that they are of; all that the bundle has if not given.

    Raises:
        BundleError: the bundle lacks an encoder, or its config does not fit.
    """
    names = bundled(bundle) if encoders is None else list(encoders)
    video = open_encoders(bundle, [n for n in names if n in ENCODERS], {"timechat": timechat})
    spec = window_spec(bundle, video)
    about: dict[str, Any] = {
        "encoders": {
            name: _identity(bundle, name) for name in (*ENCODERS, *SOUND_ENCODERS) if name in names
        },
        # Without an encoder of video, features do not depend on the frames that are looked at.
        "spec": spec.recorded(video),
    }
    if "timechat" in names:
        about["timechat"] = timechat
    if "audiomae" in names:
        about["grid"] = list(bundle.config("audiomae").grid)
    return about


def _identity(bundle: Bundle, name: str) -> str:
    """Return a digest of an encoder's config and weights, whenever they were written.

    One without weights says what it computes instead. Fields and weights have their names of bundle
    format 2, so that features stay valid when a later format renames them.
    """
    if name in ENCODERS:
        if formula := ENCODERS[name].formula:
            return formula
        name = component_of(name)
    arrays = bundle.store(name).arrays.items()
    weights = {format2.old_name(name, n): [its.dtype, its.sha256] for n, its in arrays}
    return digest([format2.old_config(name, to_json(bundle.config(name))), weights])


def begun_with(folder: Path) -> list[str] | None:
    """Return the encoders of the features in a folder, finished or not; None if there are none.

    Raises:
        DataError: the description of the features is damaged.
    """
    for name in (DESCRIPTION, UNFINISHED):
        if (folder / name).exists():
            return list(read_about(folder / name).get("encoders", ())) or None
    return None


class FeatureSource(RecordSource):
    """The features that `extract` stored, in the order of their ids.

    Args:
        folder: where they are stored.
        beside: folders with further features of the same clips.

    Raises:
        DataError: there are no finished features, or those in `beside` are of other clips.
    """

    def __init__(self, folder: Path, beside: Sequence[Path] = ()) -> None:
        super().__init__(folder, DESCRIPTION)
        self.beside = [FeatureSource(other) for other in beside]
        for other in self.beside:
            if other.about["ids"] != self.about["ids"]:
                raise DataError(
                    f"the features in {other.folder} are of other clips than those in "
                    f"{self.folder} ({len(other)} and {len(self)}): extract them of the same"
                )

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return the arrays of one clip by name; what several folders have is the first one's."""
        element: dict[str, np.ndarray] = {}
        for other in reversed(self.beside):
            element |= other[index]
        return element | super().__getitem__(index)


def check(folder: Path, bundle: Bundle, encoders: Collection[str] | None = None) -> None:
    """Check that the features in `folder` are those of this bundle's encoders.

    Args:
        encoders: those that are checked, where the folder has them; all that it has if not given.

    Raises:
        DataError: they are not, or they are not complete; the message says what differs.
    """
    found = read_about(folder / DESCRIPTION)
    names = [name for name in found["encoders"] if encoders is None or name in encoders]
    known = [n for n in ENCODERS if component_of(n) in ("", *bundle.entries)] + bundled(bundle)
    lacking = [name for name in names if name not in known]
    if lacking:
        raise DataError(
            f"{folder} was made with {', '.join(lacking)}, which bundle {bundle.path} does not "
            "have: give the bundle it was made with"
        )
    check_same(folder, found, describe(bundle, found.get("timechat", ""), names))
