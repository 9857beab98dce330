"""How every command of this project runs: its environment, its errors and its exit code."""

import logging
import os
import sys
from collections.abc import Callable

from mfm_jax.errors import UserError, system_reason

STOPPED = 130
"""Exit code of a command that Ctrl-C ended: 128 plus the number of SIGINT."""


def run_command(name: str, call: Callable[[], int]) -> int:
    """Run a command and return its exit code.

    An error that a user can cause becomes one line, "NAME: what to do". Every other exception is a
    fault of the program and keeps its traceback. Exit codes: what `call` returns, 2 or the code of
    a `UserError`, 1 where the reader of the output has gone, 130 for Ctrl-C.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file it opens
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from mfm_jax.runtime.memory import keep_freed_memory

    keep_freed_memory()
    try:
        return call()
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is None:
            raise
        print(f"{name}: {error.filename}: {system_reason(error)}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print(f"{name}: stopped", file=sys.stderr)
        return STOPPED
