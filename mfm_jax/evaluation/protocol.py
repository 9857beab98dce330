"""Write down how an evaluation was made: the clips, the versions and the networks."""

import hashlib
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import mfm_jax
from mfm_jax.bundle import Bundle
from mfm_jax.evaluation.clips import Pairing, Sound
from mfm_jax.evaluation.measure import DELTA, SIDE, Measured
from mfm_jax.media.audio import RATE
from mfm_jax.metrics import onsets
from mfm_jax.runtime.versions import version_of
from mfm_jax.storage.store import digest_file

LIBRARIES = ("numpy", "scipy", "soxr", "av", "soundfile", "jax", "flax")
HEARING = ("cnn14", "audiomae", "synchformer", "cavp", "cavp_audio")
"""Components of a bundle that scores are computed with."""
APART = 0.1
"""Seconds by which lengths may differ before the report says so."""


def protocol(
    pairing: Pairing, clips: Sequence[Measured], bundle: Bundle | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what somebody needs to make the same numbers again."""
    sides = {"reference": pairing.reference, **pairing.systems}
    names = [clip.name for clip in clips]
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "clips": len(names),
        "clip_list_sha256": pairing.digest,
        "sides": {
            side: {
                "source": pairing.sources.get(side, ""),
                "content_sha256": _content([its[name] for name in names], names),
                "rates": dict(Counter(str(clip.rates[side]) for clip in clips)),
                "seconds": _spread([clip.seconds[side] for clip in clips]),
            }
            for side, its in sides.items()
        },
        "frame_rates": dict(Counter(f"{c.fps:g}" for c in clips if c.fps is not None)),
        "rates": {"spectra_and_networks": RATE, "onsets": onsets.RATE},
        "onset_delta": DELTA,
        "flow_pixels": SIDE,
        "bundle": None if bundle is None else _bundle(bundle),
        "versions": {
            "mfm-jax": mfm_jax.__version__,
            "python": platform.python_version(),
            **{name: version_of(name) for name in LIBRARIES},
        },
        **settings,
    }


def notes(clips: Sequence[Measured]) -> list[str]:
    """Return what a reader of the figures must know of the files."""
    found = []
    uneven = [c for c in clips if max(c.seconds.values()) - min(c.seconds.values()) > APART]
    if uneven:
        found.append(
            f"{len(uneven)} of {len(clips)} clips differ in length by more than {APART:g} s "
            f"between the sides (such as {uneven[0].name}). Spectra are compared over the shorter "
            "one; onsets, loudness and silence are those of each whole file."
        )
    mixed = [c for c in clips if len(set(c.rates.values())) > 1]
    if mixed:
        found.append(
            f"{len(mixed)} of {len(clips)} clips have other sample rates on the two sides (such "
            f"as {mixed[0].name}: {_rates(mixed[0])}). Spectra are compared at {RATE} Hz, so that "
            "what lies above 8 kHz does not count."
        )
    if len({c.fps for c in clips if c.fps is not None}) > 1:
        found.append("Videos have several frame rates, and the tolerance of AV-Align is one frame.")
    silent = sum(1 for c in clips if c.scores["reference"].get("silent"))
    if silent:
        found.append(f"{silent} real clips are silent: some scores leave them out.")
    return found


def _rates(clip: Measured) -> str:
    return ", ".join(f"{side} {rate}" for side, rate in clip.rates.items())


def _content(sounds: Sequence[Sound], names: Sequence[str]) -> str:
    """Return a digest of the names of clips with the contents and the parts of their files."""
    lines = (
        f"{name}\t{digest_file(s.path)}\t{s.start:g}\t{'' if s.end is None else f'{s.end:g}'}\n"
        for name, s in zip(names, sounds, strict=True)
    )
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    values = np.array(seconds)
    return {
        "least": round(float(values.min()), 3),
        "median": round(float(np.median(values)), 3),
        "most": round(float(values.max()), 3),
    }


def _bundle(bundle: Bundle) -> dict[str, Any]:
    known = {name: bundle.entries[name].checksum for name in HEARING if name in bundle.entries}
    return {"path": str(bundle.path), "sha256": bundle.identity, "components": known}
