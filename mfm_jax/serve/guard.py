"""What every request passes before it is answered, and the headers of every answer.

A page elsewhere may make a visitor's browser send requests here. It must not be able to: not by a
form, which browsers send without asking, and not by a name of its own that leads to this machine.
"""

import asyncio
import json
from collections.abc import Collection
from contextlib import suppress
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mfm_jax.serve.limits import Refused

SAFE = ("GET", "HEAD", "OPTIONS")
LINGER = 2.0
"""Seconds for which a refused upload is still read, so that its sender sees the answer."""
LINGER_BYTES = 4 << 20

HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
        "media-src 'self' blob:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
}


class Guard:
    """Checks the host and the origin of requests, and adds headers to answers."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        """Wrap an application.

        Args:
            names: of this server; addresses and localhost are always known.
        """
        self.app, self.names = app, {name.lower() for name in names} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.encode() not in there
                ]
            await send(message)

        if (refused := self._reason(scope)) is not None:
            await Refusal(refused)(scope, receive, send_more)
        else:
            await self.app(scope, receive, send_more)

    def _reason(self, scope: Scope) -> Refused | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._is_here(_name(f"//{host}")):
            return Refused(
                421, "this server does not know this name of it: start it with --name, or use its "
                "address"
            )  # fmt: skip
        origin = headers.get("origin")
        foreign = origin is not None and urlsplit(origin).netloc.lower() != host.lower()
        if scope["method"] not in SAFE and foreign:
            return Refused(403, "requests of other sites' pages are not answered")
        return None

    def _is_here(self, name: str) -> bool:
        if name in self.names:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        return True


def _name(address: str) -> str:
    try:
        return (urlsplit(address).hostname or "").lower()
    except ValueError:
        return ""


class Refusal:
    """The answer to a request that is refused, whose body may still be coming."""

    def __init__(self, refused: Refused) -> None:
        self.refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer at once; read a little more, and close the connection."""
        body = json.dumps({"detail": str(self.refused)}).encode()
        headers: list[Any] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        if self.refused.retry_after is not None:
            headers.append((b"retry-after", str(self.refused.retry_after).encode()))
        status = self.refused.status
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await _read_a_little(receive)
        await send({"type": "http.response.body", "body": b""})


async def _read_a_little(receive: Receive) -> None:
    read = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER):
            while read < LINGER_BYTES:
                message = await receive()
                read += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    return
