"""Stands between a client and a store: slow, failing, cut off, or only counting bytes."""

import http.client
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

NOT_PASSED_ON = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}

Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers and body."""


class Proxy:
    """A proxy of the store at `url`; what it does may be changed at any time."""

    def __init__(self, url: str) -> None:
        self.store = url
        self.delay = 0.0
        """Seconds before each answer."""
        self.failing = 0.0
        """The share of requests that are answered with 503, half of them after they were done."""
        self.cut = False
        """Whether connections are closed without an answer."""
        self.unknown: set[str] = set()
        """Headers of requests, in lower case, that the store does not get."""
        self.sent = self.requests = self.failed = 0
        """Bytes of bodies sent to the client, requests, and those that failed."""
        self._finished: dict[str, Answer] = {}
        self._random, self._lock = random.Random(0), threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def cut_off(self) -> Iterator[None]:
        """Cut connections while the block runs."""
        self.cut = True
        try:
            yield
        finally:
            self.cut = False

    def _fate(self) -> float:
        """Return a number from 0 to 1 that decides about a request."""
        with self._lock:
            self.requests += 1
            return self._random.random()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args: object) -> None:
                pass

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except ConnectionError:
                    self.close_connection = True

            def answer(self) -> None:
                body = self._body()
                fate = proxy._fate()
                if proxy.cut:
                    self.close_connection = True
                    return
                time.sleep(proxy.delay)
                if fate < proxy.failing / 2:
                    return self._fail()
                status, headers, data = self._as_google(self._ask(body))
                if fate < proxy.failing:
                    return self._fail()
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in NOT_PASSED_ON:
                        self.send_header(name, value.replace(proxy.store, proxy.url))
                told = {name.lower(): value for name, value in headers}
                size = told.get("content-length") if self.command == "HEAD" else None
                self.send_header("Content-Length", size or str(len(data)))
                self.end_headers()
                self.wfile.write(data)
                with proxy._lock:
                    proxy.sent += len(data)

            do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def _body(self) -> bytes:
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    parts = []
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        parts.append(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                    return b"".join(parts)
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def _as_google(self, answer: Answer) -> Answer:
                """Return the answer to an upload in parts that is over, if it is asked for again.

                Google's store tells the object once more; its stand-in knows no such upload.
                """
                (session,) = parse_qs(urlsplit(self.path).query).get("upload_id", [""])
                if session and answer[0] == 404:
                    return proxy._finished.get(session, answer)
                if session and answer[0] == 200:
                    proxy._finished[session] = answer
                return answer

            def _ask(self, body: bytes) -> Answer:
                connection = http.client.HTTPConnection(urlsplit(proxy.store).netloc)
                dropped = NOT_PASSED_ON | proxy.unknown
                kept = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
                try:
                    connection.request(self.command, self.path, body, kept)
                    answer = connection.getresponse()
                    return answer.status, answer.getheaders(), answer.read()
                finally:
                    connection.close()

            def _fail(self) -> None:
                with proxy._lock:
                    proxy.failed += 1
                self.send_response(503)
                self.send_header("Content-Length", "0")
                self.end_headers()

        return Handler
