"""Processes of tests, forked from one that has imported the package and has no device yet.

Imports take most of the time of a process that runs a tiny network. Python's fork server makes them
once for all processes of a worker of pytest. A test of what a command does from its start on, or of
what it prints, starts an interpreter of its own instead.
"""

import atexit
import multiprocessing
import os
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PATIENCE = 300
"""Seconds that a process may take."""
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.imported"])


class Forked:
    """A process that calls `function(*arguments)`, and what the function returns.

    Args:
        options: options of JAX by their names, such as `jax_num_cpu_devices`.
        xla_flags: flags of XLA in place of those of the tests.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        options: Mapping[str, Any] | None = None,
        xla_flags: str | None = None,
    ) -> None:
        self._receive, send = _server.Pipe(duplex=False)
        flags = os.environ.get("XLA_FLAGS", "") if xla_flags is None else xla_flags
        environment = dict(os.environ) | {"XLA_FLAGS": flags}
        work = (send, environment, dict(options or {}), function, arguments)
        self.process = _server.Process(target=_call, args=work, daemon=True)
        self.process.start()
        send.close()

    def poll(self) -> int | None:
        """Return the exit code; None while the process runs."""
        return self.process.exitcode

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process is gone."""
        self.process.kill()
        self.process.join()

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def result(self) -> Any:
        """Wait until the process has ended well, and return what the function returned."""
        assert self._receive.poll(PATIENCE), "the process takes too long"
        try:
            error, found = self._receive.recv()
        except EOFError:
            error, found = "it returned nothing", None
        self.process.join(PATIENCE)
        assert error is None, error
        assert self.process.exitcode == 0
        return found


def _call(
    send: Connection,
    environment: Mapping[str, str],
    options: Mapping[str, Any],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    """Be the process: set up JAX, call the function, send what it returns, and end as usual."""
    import jax

    threading.Thread(target=_end_with_the_tests, daemon=True).start()
    os.chdir(ROOT)
    # The server was started with that of one test, in which it has read the platforms as well.
    os.environ.clear()
    os.environ.update(environment)
    jax.config.update("jax_platforms", environment.get("JAX_PLATFORMS"))
    for name, value in options.items():
        jax.config.update(name, value)
    try:
        send.send((None, function(*arguments)))
    except BaseException:
        send.send((traceback.format_exc(), None))
    finally:
        send.close()
        if jax.distributed.is_initialized():
            # The fork server leaves them out; JAX takes leave of other processes in one.
            atexit._run_exitfuncs()


def _end_with_the_tests() -> None:
    """End this process when that of the tests has ended, also where it was killed."""
    tests = multiprocessing.parent_process()
    assert tests is not None
    tests.join()
    os._exit(1)
