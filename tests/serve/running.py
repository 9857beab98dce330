"""A server in a process of its own, and requests to it that no client would send."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from integrations.comfyui.client import Client

MARK = "----mark"


@dataclass(frozen=True)
class Running:
    """A running server."""

    url: str
    process: subprocess.Popen
    folder: Path  # of its temporary files
    log: Path

    @property
    def client(self) -> Client:
        return Client(self.url)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: dict[str, str] | None = None,
        *,
        visitor: str = "127.0.0.1",
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Return status, content (of JSON the value) and headers of an answer.

        Args:
            visitor: the address to ask from, of which a machine has many: 127.0.0.2 and so on.
        """
        host = urlsplit(self.url).netloc
        connection = http.client.HTTPConnection(host, timeout=60, source_address=(visitor, 0))
        try:
            # A server that refuses an upload answers before it has read all of it.
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content: Any = answer.read()
        finally:
            connection.close()
        if content and answer.headers.get_content_type() == "application/json":
            content = json.loads(content)
        return answer.status, content, answer.headers

    def send(self, fields: Iterable[tuple[str, Any]], **how: Any) -> tuple[int, Any]:
        """Send a form; a path becomes a file of that name."""
        headers = {"Content-Type": f"multipart/form-data; boundary={MARK}"} | how.pop("more", {})
        status, content, _ = self.ask("POST", "/api/jobs", form(fields), headers, **how)
        return status, content

    def metric(self, name: str) -> float:
        """Return one of the server's metrics, with its labels in the name; 0 if it has none."""
        _, text, _ = self.ask("GET", "/metrics")
        found = re.search(rf"^{re.escape(name)} (\S+)$", text.decode(), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def files(self) -> list[Path]:
        """Return everything that lies in the folders of jobs."""
        return sorted(path for path in self.folder.rglob("*") if path.is_file())

    def until(self, condition, seconds: float = 20.0) -> None:
        """Wait until a condition holds."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it does not come true"
            time.sleep(0.02)


def form(fields: Iterable[tuple[str, Any]]) -> bytes:
    """Return a form of multipart/form-data."""
    parts = []
    for name, value in fields:
        about, content = f'name="{name}"', str(value).encode()
        if isinstance(value, Path):
            about, content = f'{about}; filename="{value.name}"', value.read_bytes()
        head = f"--{MARK}\r\nContent-Disposition: form-data; {about}\r\n\r\n".encode()
        parts.append(head + content + b"\r\n")
    return b"".join(parts) + f"--{MARK}--\r\n".encode()


@contextmanager
def running(folder: Path, *options: str) -> Iterator[Running]:
    """Start a server with a folder for its temporary files and its log."""
    temporary, log = folder / "temporary", folder / "log.txt"
    temporary.mkdir()
    command = [sys.executable, "-m", "mfm_jax.cli", "serve", "--port", "0"]
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--folder", str(temporary), *options],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found is not None, log.read_text()
        yield Running(found[0], process, temporary, log)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        finally:
            process.kill()
            if process.stdout is not None:
                process.stdout.close()
