"""Receive a form with a video: the video goes to a file while it comes, within limits."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import BinaryIO

from fastapi import Request
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from mfm_jax.errors import full_disk
from mfm_jax.serve.limits import FORM, Limits, Refused

FIELDS = 16
"""Most fields of a form."""
NAME = 100
"""Most characters of a file's name that are kept."""
PIECE = 1 << 20
"""Bytes that are written at a time."""


class Form:
    """The fields of a form as they come; the file among them is written to `target`."""

    def __init__(self, boundary: bytes, target: Path, limits: Limits) -> None:
        self.fields: dict[str, str] = {}
        self.name: str | None = None  # of the visitor's file
        self.size = 0  # bytes of the file
        self._limits, self._target = limits, target
        self._file: BinaryIO | None = None
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        self._field, self._text = "", bytearray()
        self._in_file = False
        self._text_bytes = 0
        self._over = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    def write(self, piece: bytes) -> None:
        """Read a piece of the form.

        Raises:
            Refused: it is no form, or too large.
        """
        try:
            self._parser.write(piece)
        except FormParserError:
            raise Refused(400, "this is no multipart/form-data") from None

    def finish(self) -> None:
        """Check that the form is whole, and close the file.

        Raises:
            Refused: it is not, or has no video.
        """
        self.close()
        if not self._over:
            raise Refused(400, "the form ends in its middle: send it again")
        if self.name is None:
            raise Refused(422, "the form has no file: send one in the field 'video'")
        if not self.size:
            raise Refused(422, "the video is empty: choose another file")

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _on_part_begin(self) -> None:
        self._disposition, self._field, self._in_file = b"", "", False
        self._text.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += self._counted(data[start:end])

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._counted(data[start:end])

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = _text(options.get(b"name", b""))
        self._in_file = self._field == "video"
        if self._in_file:
            if self.name is not None:
                raise Refused(422, "the form has two videos: send one after the other")
            self.name = shown_name(_text(options.get(b"filename", b"")))
            self._file = self._target.open("wb", buffering=PIECE)
        elif b"filename" in options:
            raise Refused(422, f"the field {self._field[:NAME]!r} is a file: only 'video' is one")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if not self._in_file:
            self._text += self._counted(data[start:end])
            return
        self.size += end - start
        self._limits.check_size(self.size)
        assert self._file is not None, "it is opened with the part"
        self._file.write(data[start:end])

    def _on_part_end(self) -> None:
        if self._in_file:
            return
        if self._field in self.fields:
            raise Refused(422, f"the field {self._field[:NAME]!r} comes twice")
        if len(self.fields) == FIELDS:
            raise Refused(422, f"the form has more than {FIELDS} fields")
        self.fields[self._field] = _text(bytes(self._text))

    def _on_end(self) -> None:
        self._over = True

    def _counted(self, piece: bytes) -> bytes:
        self._text_bytes += len(piece)
        if self._text_bytes > FORM:
            raise Refused(413, f"the fields of the form have more than {FORM >> 10} KiB")
        return piece


def announced_size(request: Request, limits: Limits) -> int | None:
    """Return the bytes of the body that a request announces, before any of it is read.

    Raises:
        Refused: they are too many, or it is no form.
    """
    kind, _ = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        raise Refused(415, "send the video as multipart/form-data, in the field 'video'")
    told = request.headers.get("content-length")
    if told is None:
        return None
    limits.check_size(int(told) - FORM if told.isdigit() else 0)
    return int(told) if told.isdigit() else None


async def receive_form(request: Request, target: Path, limits: Limits) -> Form:
    """Receive the form of a request.

    Raises:
        Refused: it is no form, too large, too slow, or there is no room for it.
        ClientDisconnect: the visitor has gone.
    """
    _, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if not boundary:
        raise Refused(400, "the content type names no boundary")
    form = Form(boundary, target, limits)
    try:
        async for piece in _pieces(request, limits):
            form.write(piece)
        form.finish()
    except OSError as error:
        if full_disk(error):
            raise Refused(507, "the server's disk is full: try later", retry_after=60) from None
        raise
    finally:
        form.close()
    return form


async def _pieces(request: Request, limits: Limits) -> AsyncIterator[bytes]:
    """Yield the pieces of a body that keeps coming."""
    until = time.monotonic() + limits.uploading
    stream = request.stream()
    while True:
        left = until - time.monotonic()
        try:
            async with asyncio.timeout(max(0.0, min(left, limits.silence))):
                piece = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refused(408, "the upload takes too long: try again") from None
        yield piece


def shown_name(name: str) -> str:
    """Return the last part of a file's name as it can be shown and used in headers."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].strip()
    printable = "".join(c for c in last if c.isprintable() and c not in '"\\')
    return printable[-NAME:] or "video"


def _text(raw: bytes | str) -> str:
    if isinstance(raw, str):
        return raw
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(422, "a field of the form is not UTF-8") from None
