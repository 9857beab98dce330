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
from mfm_jax.media.small_frames import small_frames
from mfm_jax.media.sounds import read_sound, sound_rate
from mfm_jax.media.soundtrack import read_audio
from mfm_jax.media.synchformer_frames import synchformer_frames
from mfm_jax.media.write import write_excerpt, write_video

CALLS: dict[str, Callable] = {
    call.__name__: call
    for call in (
        probe,
        windows,
        small_frames,
        read_audio,
        read_sound,
        sound_rate,
        synchformer_frames,
        write_video,
        write_excerpt,
    )
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
    running: dict[int, Iterator] = {}  # by the parent's numbers
    while True:
        try:
            request = receive(requests)
        except EOFError:
            return 0
        try:
            reply = {"value": _answer(request, running)}
        except MemoryError:
            reply = {"error": "MediaError", "message": "a file takes too much memory: leave it out"}
        except UserError as error:
            reply = {"error": type(error).__name__, "message": str(error)}
        except Exception as error:
            reply = {"error": "", "message": f"{type(error).__name__}: {first_line(error)}"}
        send(replies, reply)


def _answer(request: dict[str, Any], running: dict[int, Iterator]) -> Any:
    if "begin" in request:
        inner = request["begin"]
        running[request["number"]] = CALLS[inner["call"]](*inner["args"], **inner["kwargs"])
        return None
    if "next" in request:
        return next(running[request["number"]], None)
    if "close" in request:
        del running[request["number"]]
        return None
    return CALLS[request["call"]](*request["args"], **request["kwargs"])


if __name__ == "__main__":
    sys.exit(main())
