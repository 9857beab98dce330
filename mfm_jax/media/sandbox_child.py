"""The process in which `mfm_jax.media.sandbox` reads and writes files: `python -m` this module."""

import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Any

from mfm_jax.errors import UserError, first_line
from mfm_jax.media.frames import windows
from mfm_jax.media.probe import probe
from mfm_jax.media.sandbox import MEMORY, receive, send
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.write import write_video

CALLS: dict[str, Callable] = {
    call.__name__: call for call in (probe, windows, read_audio, write_video)
}
OPEN_FILES = 64


def main() -> int:
    """Answer requests until the parent closes the pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, OPEN_FILES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = os.fdopen(os.dup(0), "rb")
    # What a library prints must not get between the messages.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    running: Iterator | None = None
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return 0
        try:
            value, running = _answer(request, running)
            reply = {"value": value}
        except MemoryError:
            reply = {"error": "MediaError", "message": "a file takes too much memory: leave it out"}
        except UserError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:
            reply = {"error": "", "message": f"{type(error).__name__}: {first_line(error)}"}
        send(replies, reply)


def _answer(request: dict[str, Any], running: Iterator | None) -> tuple[Any, Iterator | None]:
    if "begin" in request:
        inner = request["begin"]
        return None, CALLS[inner["call"]](*inner["args"], **inner["kwargs"])
    if "next" in request:
        assert running is not None, "the parent begins first"
        return next(running, None), running
    if "close" in request:
        return None, None
    return CALLS[request["call"]](*request["args"], **request["kwargs"]), running


if __name__ == "__main__":
    sys.exit(main())
