"""A server that speaks the protocol of S3, in this process."""

import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import fsspec
from moto.server import ThreadedMotoServer

from mfm_jax.storage import addresses
from mfm_jax.storage.addresses import StorePath

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def running_server() -> Iterator[str]:
    """Start a server; its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        assert server._server is not None
        server._server.app = _writing_one_at_a_time(server._server.app)
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def _writing_one_at_a_time(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Let two requests that make one object come one after the other, as those of a store do.

    Moto looks whether the object is there and writes it without a lock between its threads.
    """
    lock = threading.Lock()

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] != "PUT":
            return app(environ, start)
        with lock:
            return app(environ, start)

    return answer


@contextmanager
def used(url: str) -> Iterator[None]:
    """Let s3fs take the server at `url` for Amazon's while the block runs."""
    before = {name: os.environ.get(name) for name in (*ENVIRONMENT, "AWS_ENDPOINT_URL")}
    os.environ.update(ENVIRONMENT, AWS_ENDPOINT_URL=url)
    _forget()
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        _forget()


def _forget() -> None:
    """Let s3fs look at the environment again."""
    addresses.objects_of.cache_clear()
    fsspec.get_filesystem_class("s3").clear_instance_cache()


def new_bucket(url: str, name: str) -> StorePath:
    """Make a bucket, and return its path."""
    with urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT")):
        return StorePath(f"s3://{name}")
