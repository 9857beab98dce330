"""Paths of the files that come with the package."""

from pathlib import Path

TINY_BUNDLE = Path(__file__).parents[1] / "bundle" / "tiny"
"""The shipped miniature: every network at small size, trained on the Foley world."""
