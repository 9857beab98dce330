"""Objects of Google Cloud Storage: each is read, written, looked at or removed by one request.

gcsfs sends two requests for what an object is and a third one to read it, and each goes through an
event loop in another thread. Where work is small that is most of it. So the requests for single
objects are made here, over connections that stay open. The rest is left to gcsfs: credentials, the
address of the service, errors, lists, and large objects, which are sent and fetched in parts.
"""

import functools
import http.client
import inspect
import json
import mimetypes
import os
import secrets
import ssl
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from mfm_jax.storage.objects import Info, Objects

LARGE = 5 << 20
"""Bytes from which on an object is written in parts."""
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is given up."""
IDLE = 32
"""Connections that are kept open for later requests."""
TRIES = 9
"""Tries of a request by gcsfs, in about as many seconds as `mfm_jax.storage.retries` is patient."""


class Place(NamedTuple):
    """The host and the paths for requests about an object."""

    service: tuple[str, str]  # scheme and host
    objects: str  # the path for the objects of its bucket
    name: str  # of the object, quoted


class _Connection(http.client.HTTPConnection):
    """A connection that sends a request in one piece, for which the service need wake only once."""

    _parts: list[bytes] | None = None

    def request(self, *args: Any, **kwargs: Any) -> None:
        """Send a request, with the body as bytes."""
        self._parts = []
        try:
            super().request(*args, **kwargs)
            whole = b"".join(self._parts)
        finally:
            self._parts = None
        self.send(whole)

    def send(self, data: Any) -> None:
        """Send bytes, or keep them while a request is put together."""
        if self._parts is None:
            super().send(data)
        else:
            self._parts.append(data)


class _Secure(_Connection, http.client.HTTPSConnection):
    """The same over TLS."""


class GoogleObjects(Objects):
    """Objects by single requests of the JSON interface, the rest by gcsfs."""

    def __init__(self, library: Any) -> None:
        from gcsfs.retry import validate_response

        _be_patient()
        super().__init__(library)
        self._refuse = validate_response
        self._idle: deque[tuple[tuple[str, str], http.client.HTTPConnection]] = deque()
        # A child must not speak over the connections of its parent.
        os.register_at_fork(after_in_child=self._close)

    def info(self, key: str) -> Info:
        """Return what the store tells of an object or a folder."""
        if "/" not in key:
            return super().info(key)
        place = self._place(key)
        try:
            with self._asked("GET", place, f"{place.objects}/{place.name}") as answer:
                told = json.loads(answer.read())
        except FileNotFoundError:
            if not any(page.get("items") for page in self._pages(f"{key}/", maxResults="1")):
                raise
            return {"name": key, "size": 0, "type": "directory"}
        return {**told, "name": key, "size": int(told["size"]), "type": "file"}

    def names(self, folder: str, begin: str = "") -> list[str]:
        """Return the names of what is in a folder that begin in a way."""
        found: list[str] = []
        for page in self._pages(f"{folder}/{begin}", delimiter="/"):
            found += (item["name"] for item in page.get("items", ()))
            found += (prefix.rstrip("/") for prefix in page.get("prefixes", ()))
        inside = f"{folder}/".partition("/")[2]
        return [name.removeprefix(inside) for name in found if name != inside]

    def _pages(self, begin: str, **asked: str) -> Iterator[dict[str, Any]]:
        """Yield what is told of the objects whose keys begin in a way; a page takes one request."""
        place = self._place(begin)
        fields = "items(name),prefixes,nextPageToken"
        query = {"prefix": begin.partition("/")[2], "fields": fields, **asked}
        while True:
            with self._asked("GET", place, f"{place.objects}?{urlencode(query)}") as answer:
                page = json.loads(answer.read())
            yield page
            if "nextPageToken" not in page:
                return
            query["pageToken"] = page["nextPageToken"]

    def read(self, key: str) -> bytes:
        """Return the contents."""
        with self._contents(key) as answer:
            return answer.read()

    def read_small(self, key: str, most: int) -> tuple[Info, bytes | None]:
        """Return what is told of an object and, if it has at most so many bytes, the contents."""
        with self._contents(key) as answer:
            told = {"name": key, "type": "file"}
            told["generation"] = answer.headers.get("x-goog-generation")
            if answer.headers.get("x-goog-stored-content-encoding", "identity") == "identity":
                told |= _digests(answer.headers)
            data = answer.read() if (answer.length or 0) <= most else None
            return told | {"size": answer.length if data is None else len(data)}, data

    def _contents(self, key: str) -> Any:
        place = self._place(key)
        return self._asked("GET", place, f"/download{place.objects}/{place.name}?alt=media")

    def write(self, key: str, data: bytes) -> None:
        """Write an object, which takes the place of one with its name."""
        if len(data) < LARGE:
            self._write(key, data)
        else:
            super().write(key, data)

    def create(self, key: str, data: bytes) -> None:
        """Write an object; raise FileExistsError if there is one with its name."""
        if len(data) < LARGE:
            self._write(key, data, "&ifGenerationMatch=0")
        else:
            super().create(key, data)

    def put(self, key: str, file: Path) -> None:
        """Write a file of this machine as an object."""
        if file.stat().st_size < LARGE:
            self._write(key, file.read_bytes())
        else:
            super().put(key, file)

    def _write(self, key: str, data: bytes, condition: str = "") -> None:
        place, mark = self._place(key), secrets.token_hex(16).encode()
        told = json.dumps({"name": key.partition("/")[2]}).encode()
        kind = (mimetypes.guess_type(key)[0] or "application/octet-stream").encode()
        body = b"--%b\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%b\r\n" % (mark, told)
        body += b"--%b\r\nContent-Type: %b\r\n\r\n%b\r\n--%b--\r\n" % (mark, kind, data, mark)
        target = f"/upload{place.objects}?uploadType=multipart{condition}"
        headers = {"Content-Type": f"multipart/related; boundary={mark.decode()}"}
        with self._asked("POST", place, target, body, headers) as answer:
            answer.read()

    def remove(self, key: str, *, missing_ok: bool = False) -> None:
        """Remove an object; raise FileNotFoundError if there is none and there has to be one."""
        place = self._place(key)
        try:
            with self._asked("DELETE", place, f"{place.objects}/{place.name}") as answer:
                answer.read()
        except FileNotFoundError:
            if not missing_ok:
                raise

    # Requests.

    def _place(self, key: str) -> Place:
        url = urlsplit(self.library.url(key))  # SERVICE/download/storage/v1/b/BUCKET/o/NAME
        objects, _, name = url.path.removeprefix("/download").rpartition("/")
        return Place((url.scheme, url.netloc), objects, name)

    @contextmanager
    def _asked(
        self,
        method: str,
        place: Place,
        target: str,
        body: bytes | None = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[http.client.HTTPResponse]:
        """Yield the answer to a request; the connection stays open if all of it is read.

        Raises:
            Exception: the answer is an error, as gcsfs raises it, or there is none.
        """
        sent = dict(headers)
        self.library.credentials.apply(sent)
        connection, answer = self._sent(place.service, method, target, body, sent)
        try:
            if answer.status >= 400:
                self._refuse(answer.status, answer.read(), target)
            yield answer
        finally:
            if answer.isclosed() and len(self._idle) < IDLE:
                self._idle.append((place.service, connection))
            else:
                connection.close()

    def _sent(
        self,
        service: tuple[str, str],
        method: str,
        target: str,
        body: bytes | None,
        headers: Mapping[str, str],
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request over an open connection, or over a new one if that has been closed."""
        while True:
            connection = self._open(service)
            is_new = connection.sock is None
            try:
                connection.request(method, target, body, headers)
                return connection, connection.getresponse()
            except BaseException as error:
                connection.close()
                if is_new or not isinstance(error, ConnectionError | http.client.BadStatusLine):
                    raise

    def _open(self, service: tuple[str, str]) -> http.client.HTTPConnection:
        with suppress(IndexError):
            its, connection = self._idle.pop()
            if its == service:
                return connection
            connection.close()
        scheme, host = service
        if scheme == "https":
            return _Secure(host, timeout=TIMEOUT, context=_trusted())
        return _Connection(host, timeout=TIMEOUT)

    def _close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


@functools.cache
def _trusted() -> ssl.SSLContext:
    return ssl.create_default_context()


@functools.cache
def _be_patient() -> None:
    """Let gcsfs try longer than for half a minute, which would end a save of a run.

    Orbax writes and reads through instances of its own.
    """
    from gcsfs.core import GCSFileSystem
    from gcsfs.retry import retry_request

    for name in ("_request", "_get_file_request"):
        once = inspect.unwrap(getattr(GCSFileSystem, name))
        setattr(GCSFileSystem, name, retry_request(retries=TRIES)(once))


def _digests(headers: http.client.HTTPMessage) -> dict[str, str]:
    """Return the MD5 of an object, which one that was composed of others does not have."""
    for told in ",".join(headers.get_all("x-goog-hash", [])).split(","):
        name, _, digest = told.strip().partition("=")
        if name == "md5":
            return {"md5Hash": digest}
    return {}
