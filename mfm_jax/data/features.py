"""Cached features: video tokens, AudioMAE tokens and latents of each clip.

`mfm_jax.inference.extract` writes them; training reads them.
"""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mfm_jax.bundle import Bundle, format2
from mfm_jax.bundle.windows import window_spec
from mfm_jax.data.clips import DataError
from mfm_jax.data.records import RecordSource, check_same, digest, read_about
from mfm_jax.runtime.config import to_json

ENCODERS = ("cavp", "timechat", "audiomae", "vae")
"""Components whose outputs are stored, where the bundle has them."""

DESCRIPTION = "features.json"
"""Written last: a folder of features with it is complete."""


def describe(bundle: Bundle, timechat: str, encoders: Iterable[str] = ENCODERS) -> dict[str, Any]:
    """Describe what features depend on: the encoders' weights, and how clips are decoded."""
    present = [name for name in encoders if name in bundle.entries]
    about: dict[str, Any] = {
        "encoders": {name: _identity(bundle, name) for name in present},
        "spec": asdict(window_spec(bundle)),
    }
    if "timechat" in present:
        about["timechat"] = timechat
    if "audiomae" in present:
        about["grid"] = list(bundle.config("audiomae").grid)
    return about


def _identity(bundle: Bundle, name: str) -> str:
    """Return a digest of a component's config and weights, whenever they were written.

    Fields and weights have their names of bundle format 2, so that features stay valid when a later
    format renames them.
    """
    arrays = bundle.store(name).arrays.items()
    weights = {format2.old_name(name, n): [its.dtype, its.sha256] for n, its in arrays}
    return digest([format2.old_config(name, to_json(bundle.config(name))), weights])


class FeatureSource(RecordSource):
    """The features that `extract` stored, in the order of their ids."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, DESCRIPTION)


def check(folder: Path, bundle: Bundle) -> None:
    """Check that the features in `folder` are those of this bundle's encoders.

    Raises:
        DataError: they are not, or they are not complete; the message says what differs.
    """
    found = read_about(folder / DESCRIPTION)
    lacking = [name for name in found["encoders"] if name not in bundle.entries]
    if lacking:
        raise DataError(
            f"{folder} was made with {', '.join(lacking)}, which bundle {bundle.path} does not "
            "have: give the bundle it was made with"
        )
    wanted = describe(bundle, found.get("timechat", ""), found["encoders"])
    check_same(folder, found, wanted)
