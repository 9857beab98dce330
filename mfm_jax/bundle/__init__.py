"""A bundle: every network that makes sound from video, in one directory."""

from mfm_jax.bundle.bundle import Bundle, BundleError, Entry
from mfm_jax.bundle.components import COMPONENTS, ComponentKind, Settings, Source
from mfm_jax.bundle.write import Component, write_bundle, write_sizes

__all__ = [
    "COMPONENTS",
    "Bundle",
    "BundleError",
    "Component",
    "ComponentKind",
    "Entry",
    "Settings",
    "Source",
    "write_bundle",
    "write_sizes",
]
