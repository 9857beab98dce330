"""The files that can be written: containers, and the codecs of what is encoded for them."""

from dataclasses import dataclass
from pathlib import Path

from mfm_jax.errors import WriteError


@dataclass(frozen=True)
class Format:
    """A container."""

    muxer: str  # FFmpeg's name
    picture: str = "libx264"  # encoder of frames
    sound: str = "aac"  # encoder of the new sound
    isom: bool = True  # with codec tags and edit lists, as mp4

    @property
    def options(self) -> dict[str, str]:
        """Options of the muxer; the index comes first, so that a file plays while it loads."""
        return {"movflags": "+faststart"} if self.isom else {}


FORMATS = {
    ".mp4": Format("mp4"),
    ".mov": Format("mov"),
    ".m4v": Format("mp4"),
    ".mkv": Format("matroska", isom=False),
    ".webm": Format("webm", picture="libvpx-vp9", sound="libopus", isom=False),
}
"""By suffix, in lower case."""

CONTAINERS = tuple(FORMATS)
"""Suffixes of the video files that can be written."""

SOUNDS = (".wav", ".flac")
"""Suffixes of the files of sound alone that can be written."""


def format_of(target: Path) -> Format:
    """Return the format that the suffix of a file names, in any case.

    Raises:
        WriteError: it names none that can be written.
    """
    found = FORMATS.get(Path(target).suffix.lower())
    if found is None:
        raise WriteError(f"cannot write {target}: name it {', '.join(CONTAINERS)}")
    return found
