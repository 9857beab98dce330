"""Notice files that were cut or joined by their structure, not by a length that they declare."""

import os
from pathlib import Path
from typing import BinaryIO

EBML = b"\x1a\x45\xdf\xa3"
EBML_SEGMENT = b"\x18\x53\x80\x67"
HOLDS_MEDIA = (b"mdat", b"moof", b"moov")
"""Boxes of an mp4 whose loss matters; others at its end (free, udta, mfra) may be cut."""


def is_cut(path: Path, format: str) -> bool:
    """Return whether the outermost structure of a file goes on beyond its end.

    Transport and elementary streams have no such structure, and count as complete.

    Args:
        format: FFmpeg's name of the container, e.g. "matroska,webm".
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        if format.startswith("mov"):
            return _mp4_is_cut(file, size)
        if format.startswith("matroska"):
            return (_segment_end(file) or 0) > size
        if format == "avi":
            return _riff_end(file) > size + 1
        if format == "flv":
            return _flv_is_cut(file, size)
    return False


def is_joined(path: Path, format: str) -> bool:
    """Return whether another file of the kind follows, of which players would show nothing.

    Args:
        format: FFmpeg's name of the container.
    """
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        if format.startswith("mov"):
            names = [name for name, _ in _boxes(file, size)]
            return b"moov" in names and b"ftyp" in names[names.index(b"moov") :]
        if format.startswith("matroska"):
            end, magic = _segment_end(file), EBML
        elif format == "avi":
            end, magic = _riff_end(file), b"RIFF"
        else:
            return False
        file.seek(end or size)
        head = file.read(12)
        return head.startswith(magic) and (magic == EBML or head[8:] == b"AVI ")


def is_fragmented(path: Path) -> bool:
    """Return whether an mp4 consists of fragments, so that its index does not list them all."""
    size = os.stat(path).st_size
    with open(path, "rb") as file:
        return any(name == b"moof" for name, _ in _boxes(file, size))


def _boxes(file: BinaryIO, size: int):
    """Yield the name and the end of each outermost box of an mp4."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length, name = int.from_bytes(head[:4], "big"), head[4:8]
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:  # until the end of the file
            length = size - at
        if length < 8 or not all(32 <= byte < 127 or byte == 0xA9 for byte in name):
            return  # something that players skip
        at += length
        yield name, at


def _mp4_is_cut(file: BinaryIO, size: int) -> bool:
    return any(end > size and name in HOLDS_MEDIA for name, end in _boxes(file, size))


def _segment_end(file: BinaryIO) -> int | None:
    """Return where Matroska's segment ends, or None if it was written to a pipe."""
    head = file.read(4096)
    at = head.find(EBML_SEGMENT) + 4
    if at < 4 or at >= len(head):
        return None
    length = 9 - head[at].bit_length()  # leading zero bits tell how long the number is
    unknown = (1 << 7 * length) - 1
    value = int.from_bytes(head[at : at + length], "big") & unknown
    return None if value == unknown else at + length + value


def _riff_end(file: BinaryIO) -> int:
    """Return where the first chunk of an AVI ends."""
    length = int.from_bytes(file.read(8)[4:], "little")
    return 8 + length + length % 2


def _flv_is_cut(file: BinaryIO, size: int) -> bool:
    """Look at the last tag, whose length is written behind it."""
    file.seek(size - 4)
    behind = int.from_bytes(file.read(4), "big")
    if not 11 <= behind <= size - 13:
        return True
    file.seek(size - 4 - behind)
    kind, *length = file.read(4)
    return kind not in (8, 9, 18) or int.from_bytes(bytes(length), "big") != behind - 11
