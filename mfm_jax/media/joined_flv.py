"""Read FLV recordings that were joined byte by byte as one.

FFmpeg's demuxer stops at the header of the second one. It lies between two tags, so it can be
skipped; that the clock starts again is seen to like everywhere else.
"""

import io
import mmap
from collections.abc import Sequence
from pathlib import Path

HEADER = b"FLV\x01"


def headers_within(path: Path) -> list[tuple[int, int]]:
    """Return where headers of further recordings begin and end in a file; none in a usual one."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != HEADER or data.find(HEADER, 4) < 0:
            return []
        found, at = [], _behind_header(data, 0)
        while at + 11 <= len(data):
            if data[at : at + 4] == HEADER:
                found.append((at, _behind_header(data, at)))
                at = found[-1][1]
            else:  # a tag of 11 bytes and its data, then its length
                at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
        return found


def _behind_header(data: mmap.mmap, at: int) -> int:
    return at + int.from_bytes(data[at + 5 : at + 9], "big") + 4


class WithoutParts(io.RawIOBase):
    """A file opened for reading that skips some of its parts."""

    def __init__(self, path: Path, skipped: Sequence[tuple[int, int]]) -> None:
        self._file = open(path, "rb")  # noqa: SIM115 - closed with this object
        size = path.stat().st_size
        begins = [0, *(end for _, end in skipped)]
        ends = [*(begin for begin, _ in skipped), size]
        self._pieces = list(zip(begins, ends, strict=True))
        self._size = sum(end - begin for begin, end in self._pieces)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer) -> int:
        """Fill `buffer` from one piece; return the number of bytes read."""
        before = 0
        for begin, end in self._pieces:
            left = before + end - begin - self._at
            if left > 0:
                self._file.seek(end - left)
                data = self._file.read(min(left, len(buffer)))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            before += end - begin
        return 0

    def close(self) -> None:
        self._file.close()
        super().close()
