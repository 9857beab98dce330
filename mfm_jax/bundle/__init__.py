"""A bundle: every network that makes sound from video, in one directory."""

from mfm_jax.bundle.bundle import Bundle, BundleError, Entry
from mfm_jax.bundle.components import COMPONENTS, ComponentKind, Settings, Source
from mfm_jax.bundle.licences import UNKNOWN, combined, commercial_use, trained_source
from mfm_jax.bundle.write import Component, write_bundle, write_sizes

__all__ = [
    "COMPONENTS",
    "UNKNOWN",
    "Bundle",
    "BundleError",
    "Component",
    "ComponentKind",
    "Entry",
    "Settings",
    "Source",
    "combined",
    "commercial_use",
    "trained_source",
    "write_bundle",
    "write_sizes",
]
