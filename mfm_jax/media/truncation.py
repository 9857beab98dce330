"""Notice files that were cut: by the structure of the container, not by a length it declares."""

import os
from pathlib import Path
from typing import BinaryIO

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
            return _matroska_is_cut(file, size)
        if format == "avi":
            head = file.read(8)
            return 8 + int.from_bytes(head[4:], "little") > size + 1
        if format == "flv":
            return _flv_is_cut(file, size)
    return False


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


def _matroska_is_cut(file: BinaryIO, size: int) -> bool:
    head = file.read(4096)
    at = head.find(EBML_SEGMENT)
    if at < 0 or at + 5 > len(head):
        return False
    first = head[at + 4]
    length = 9 - first.bit_length()  # leading zero bits tell how long the number is
    digits = head[at + 4 : at + 4 + length]
    value = int.from_bytes(digits, "big") & ((1 << 7 * length) - 1)
    if value == (1 << 7 * length) - 1:  # unknown: it was written to a pipe
        return False
    return at + 4 + length + value > size


def _flv_is_cut(file: BinaryIO, size: int) -> bool:
    """Look at the last tag, whose length is written behind it."""
    file.seek(size - 4)
    behind = int.from_bytes(file.read(4), "big")
    if not 11 <= behind <= size - 13:
        return True
    file.seek(size - 4 - behind)
    kind, *length = file.read(4)
    return kind not in (8, 9, 18) or int.from_bytes(bytes(length), "big") != behind - 11
