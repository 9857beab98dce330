"""A client of `mfm serve` that needs nothing but Python."""

import http.client
import json
import mimetypes
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

ANSWER = 60.0
"""Seconds in which the server must answer."""
BEAT = 1.0
"""Seconds for which one question waits for the end of a job."""


class ServerError(RuntimeError):
    """The server refuses something, or does not answer; the message is its own."""


class Client:
    """Sends videos to a server and fetches their sounds."""

    def __init__(self, url: str) -> None:
        """Name the server.

        Args:
            url: such as http://127.0.0.1:8000.
        """
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ServerError(f"{url!r} is no address of a server: give http://HOST:PORT")
        self._parts, self._base = parts, parts.path.rstrip("/")

    def make(
        self,
        video: Path,
        target: Path,
        settings: Mapping[str, Any] | None = None,
        told: Callable[[dict[str, Any]], object] = lambda job: None,
    ) -> dict[str, Any]:
        """Fetch the sound of a video into `target`; return the job, which is removed afterwards.

        Args:
            target: its suffix says which file: .mp4 or .wav.
            settings: fields of the form; what is None is left out.
            told: is called with the job about once a second; if it raises, the job is cancelled.

        Raises:
            ServerError: the server refuses it, or the job fails.
        """
        job = self.send(video, settings or {})
        try:
            while job["state"] in ("queued", "running"):
                told(job)
                job = self.job(job["id"], BEAT)
            told(job)
            if job["state"] != "done":
                raise ServerError(job["error"] or f"the job was {job['state']}")
            self.fetch(job["id"], f"sound{target.suffix}", target)
        finally:
            self.remove(job["id"])
        return job

    def send(self, video: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Send a video, piece by piece; return its job."""
        mark = secrets.token_hex(16)
        fields = "".join(
            f'--{mark}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
            for name, value in settings.items()
            if value is not None
        )
        name = video.name.replace('"', "'").replace("\r", "").replace("\n", "")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        head = (
            f'{fields}--{mark}\r\nContent-Disposition: form-data; name="video"; '
            f'filename="{name}"\r\nContent-Type: {kind}\r\n\r\n'
        ).encode()
        tail = f"\r\n--{mark}--\r\n".encode()
        with video.open("rb") as file:

            def pieces() -> Iterator[bytes]:
                yield head
                yield from iter(lambda: file.read(1 << 20), b"")
                yield tail

            size = len(head) + video.stat().st_size + len(tail)
            headers = {
                "Content-Type": f"multipart/form-data; boundary={mark}",
                "Content-Length": str(size),
            }
            return json.loads(self._ask("POST", "/api/jobs", pieces(), headers))

    def job(self, id: str, wait: float = 0.0) -> dict[str, Any]:
        """Return a job, after at most `wait` seconds if it is not over."""
        return json.loads(self._ask("GET", f"/api/jobs/{id}?wait={wait:g}", wait=wait))

    def fetch(self, id: str, name: str, target: Path, wait: float = 0.0) -> None:
        """Write a file of a job to `target`."""
        target.write_bytes(self._ask("GET", f"/api/jobs/{id}/{name}?wait={wait:g}", wait=wait))

    def remove(self, id: str) -> None:
        """Cancel a job and remove its files, if they are still there."""
        try:
            self._ask("DELETE", f"/api/jobs/{id}")
        except ServerError:
            return

    def server(self) -> dict[str, Any]:
        """Return what the server offers and allows."""
        return json.loads(self._ask("GET", "/api"))

    def _ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> bytes:
        parts = self._parts
        secure = parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=ANSWER + wait)
        where = f"{parts.scheme}://{parts.netloc}"
        try:
            # A server that refuses an upload answers before it has read all of it.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, self._base + path, body, dict(headers or {}))
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerError(f"{where} does not answer ({error}): is mfm serve running?") from None
        finally:
            connection.close()
        if answer.status >= 400:
            try:
                reason = json.loads(content)["detail"]
            except (ValueError, KeyError, TypeError):
                reason = f"{where} answers {answer.status}"
            raise ServerError(str(reason))
        return content
