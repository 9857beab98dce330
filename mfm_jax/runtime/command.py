"""How every command of this project runs: its environment, its errors and its exit code."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress

from mfm_jax.errors import UserError, full_disk, one_line, system_reason

STOPPED = 130
"""Exit code of a command that Ctrl-C ended: 128 plus the number of SIGINT."""


def run_command(name: str, call: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    An error that a user can cause becomes one line, "NAME: what to do". Every other exception is a
    fault of the program and keeps its traceback. Exit codes: what `call` returns, 2 or the code of
    a `UserError`, 1 where the reader of the output has gone, 130 for Ctrl-C.
    """

    def stopped(reason: str, code: int = UserError.exit_code) -> int:
        print(f"{name}: {one_line(reason)}", file=sys.stderr)
        return code

    # Orbax reports every file that it opens, and libraries their errors before they raise them.
    for library in ("absl", "asyncio", "gcsfs", "google", "fsspec", "botocore"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    asyncio.set_event_loop_policy(_Loops())
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from mfm_jax.runtime.memory import keep_freed_memory

    keep_freed_memory()
    try:
        code = call()
        sys.stdout.flush()
        return code
    except UserError as error:
        return stopped(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of a pipe has seen enough
        _discard_output()
        return 1
    except KeyboardInterrupt:
        return stopped("stopped", STOPPED)
    except Exception as error:
        if isinstance(error, OSError) and error.filename is not None:
            return stopped(f"{error.filename}: {system_reason(error)}")
        if reason := full_disk(error):
            _discard_output()  # the output may be a file there
            return stopped(f"{reason}: make room and start again")
        raise


class _Loops(asyncio.DefaultEventLoopPolicy):
    """Makes loops of events that may hear of something once they are closed.

    When a write fails, Orbax leaves others behind. TensorStore prints a traceback for each that
    cannot be reported.
    """

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


class _Loop(asyncio.SelectorEventLoop):
    def call_soon_threadsafe(self, callback, *args, context=None):  # type: ignore[override]
        if self.is_closed():
            return None
        return super().call_soon_threadsafe(callback, *args, context=context)


def _discard_output() -> None:
    """Let what is still to be printed go nowhere, or the end of the interpreter would fail."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
