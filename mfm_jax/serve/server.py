"""Run a server: its socket, its temporary files, its start and its end."""

import asyncio
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from types import FrameType

import uvicorn

from mfm_jax.bundle import Bundle
from mfm_jax.errors import UsageError, system_reason
from mfm_jax.media.sandbox import SWITCH
from mfm_jax.runtime import signals
from mfm_jax.serve.app import build_app
from mfm_jax.serve.limits import Limits
from mfm_jax.serve.service import Computing, Service
from mfm_jax.storage.files import check_folder
from mfm_jax.storage.locks import is_locked, locked_new_folder

CONNECTIONS = 512
"""Open connections; one more is told to come back."""
LINGER = 2.0
"""Seconds in which results can be fetched that were done after the server was told to stop."""
CLOSING = 3
"""Seconds for answers that are still being sent when the server stops."""


def serve(
    bundle: Bundle,
    limits: Limits,
    computing: Computing,
    *,
    host: str,
    port: int,
    names: Sequence[str] = (),
    proxy: str | None = None,
    folder: Path | None = None,
    grace: float = 30.0,
) -> int:
    """Serve until a signal comes; return the exit code.

    Args:
        port: 0 takes a free one.
        names: of the server, beside its addresses and localhost.
        proxy: the address of a proxy in front, whose word for the visitor's address is taken.
        folder: for temporary files; the system's if None.
        grace: seconds that jobs may still take after the first signal.

    Raises:
        BundleError: the bundle cannot be opened.
        UsageError: the address cannot be used, or the devices cannot be divided as told.
        WriteError: nothing can be written into the folder.
    """
    os.environ[SWITCH] = "1"  # strangers' files are decoded in processes of their own
    os.environ.setdefault("MFM_MAX_PIXELS", str(limits.pixels))
    os.umask(0o077)
    with closing(_listening(host, port)) as listening, _scratch(folder) as scratch:
        service = Service(bundle, scratch, limits, computing)
        service.start()
        config = uvicorn.Config(
            build_app(service, tuple(names)),
            http="h11",
            ws="none",
            loop="asyncio",
            log_config=None,
            access_log=False,  # it would tell ids
            server_header=False,
            proxy_headers=proxy is not None,
            forwarded_allow_ips=proxy,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=CLOSING,
        )
        server = Server(config, service, grace, _address(host, listening), _is_open(listening))
        asyncio.run(server.serve([listening]))
        ended = service.stop()
    print("mfm serve: stopped", file=sys.stderr)
    code = 128 + server.stopped_by if server.stopped_by else 1
    if not ended:  # the interpreter would wait for the thread
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


class Server(uvicorn.Server):
    """A server that ends what it has begun before it stops."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        grace: float,
        address: str,
        is_open: bool,
    ) -> None:
        super().__init__(config)
        self.service, self.grace, self.address, self.is_open = service, grace, address, is_open
        self.stopped_by: int | None = None
        self._until: float | None = None
        self._done_at = 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Note a signal; the second one ends the server at once."""
        if self.stopped_by is not None:
            self.should_exit = self.force_exit = True
        self.stopped_by = sig

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and tell where."""
        await super().startup(sockets)
        print(f"mfm serve: {self.address} (Ctrl-C stops it)", flush=True)
        if self.is_open:
            print(
                "mfm serve: everybody who can reach this machine can use it; there is no login",
                file=sys.stderr,
            )

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop: once the jobs are done, or after the time that they have."""
        if self.stopped_by is not None and not self.should_exit:
            self.should_exit = self._is_over()
        return await super().on_tick(counter)

    def _is_over(self) -> bool:
        now, left = time.monotonic(), self.service.jobs.unfinished()
        if self._until is None:
            self.service.close()
            self._until = now + self.grace
            if left:
                print(
                    f"mfm serve: {left} {'job is' if left == 1 else 'jobs are'} finished first, "
                    f"for {self.grace:g} s at most; a second signal stops them",
                    file=sys.stderr,
                )
        if left:
            self._done_at = now
        return (not left and now - self._done_at > LINGER) or now > self._until

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the jobs that are left, so that nobody waits for them, and close the connections."""
        self.service.end_jobs()
        await super().shutdown(sockets)


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, before anything is loaded.

    Raises:
        UsageError: the address is taken or not one of this machine.
    """
    try:
        known = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = known[0]
        found = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        told = system_reason(error) if isinstance(error, OSError) else "it is no name"
        raise UsageError(f"--host {host} cannot be used ({told}): name an address here") from None
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError) as error:
        found.close()
        told = system_reason(error) if isinstance(error, OSError) else "it is no port"
        raise UsageError(
            f"{host} port {port} cannot be used ({told}): choose another --port"
        ) from None
    return found


def _address(host: str, listening: socket.socket) -> str:
    port = listening.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _is_open(listening: socket.socket) -> bool:
    """Return whether other machines may reach a socket."""
    return not ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


@contextmanager
def _scratch(parent: Path | None) -> Iterator[Path]:
    """Make a folder for temporary files, and remove it in the end.

    Those of servers that were killed are removed first.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    check_folder(parent)
    begin = f"mfm-serve-{os.getuid()}-"
    with suppress(OSError):
        for old in parent.glob(f"{begin}*"):
            if not old.is_symlink() and old.stat().st_uid == os.getuid() and not is_locked(old):
                shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"{begin}{os.urandom(8).hex()}"
    with locked_new_folder(folder), signals.undone(lambda: shutil.rmtree(folder, True)):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
