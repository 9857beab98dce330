"""Requests to a store: made again while the store is not there, and refused in one clear line."""

import functools
import io
import os
import random
import ssl
import time
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from mfm_jax.errors import UserError, first_line

ORIGINS = ("aiohttp", "botocore", "fsspec", "gcsfs", "google", "http", "requests", "urllib3")
"""The packages whose errors are those of a store."""
PATIENCE = 120.0
"""Seconds for which a store that does not answer, or says that it cannot, is asked again."""
PAUSES = 0.1, 8.0
"""Seconds between two tries: about twice as many each time, from the first number to the second."""

P = ParamSpec("P")
R = TypeVar("R")


class AddressError(UserError, OSError):
    """A store that does not do what it is asked; the message says what to do.

    Like the errors of a disk it is an OSError: code that can do without a file goes on without it.
    """


def asked(call: Callable[P, R]) -> Callable[P, R]:
    """Let a method of a path in a store try again while the store is not there.

    It raises the errors that a disk does, where there is one.

    Raises:
        FileNotFoundError: as on a disk.
        FileExistsError: as on a disk.
        AddressError: the store refuses, or has not answered for `PATIENCE` seconds.
    """

    @functools.wraps(call)
    def patient(*args: P.args, **kwargs: P.kwargs) -> R:
        until, (pause, longest) = time.monotonic() + PATIENCE, PAUSES
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                if not may_pass(error) or time.monotonic() > until:
                    tell(str(args[0]), error)
                time.sleep(pause * random.uniform(0.5, 1.0))  # not all workers at once
                pause = min(2 * pause, longest)

    return patient


def status_of(error: Exception) -> int | None:
    """Return the HTTP status in a library's error, or in the one that it was made of (s3fs)."""
    error = error.__cause__ if isinstance(error.__cause__, Exception) else error
    response = getattr(error, "response", None)
    found = getattr(error, "code", None) or getattr(error, "status", None)
    if found is None and isinstance(response, dict):
        found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return int(str(found)) if str(found).isdigit() else None


def may_pass(error: Exception) -> bool:
    """Return whether an error is one of the network, or of a store that has too much to do."""
    code = status_of(error)
    if code is not None:
        return code in (408, 409, 429) or 500 <= code < 600  # 409: another writes this object now
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | AddressError):
        return False
    if isinstance(error, ssl.SSLCertVerificationError):
        return False
    if isinstance(error, ConnectionError | TimeoutError | ssl.SSLError):
        return True
    return _origin(error) in ("aiohttp", "http", "requests", "urllib3") or type(error).__name__ in (
        "EndpointConnectionError",
        "ConnectTimeoutError",
        "ReadTimeoutError",
        "ChecksumError",
        "TransportError",
        "gaierror",
    )


def _origin(error: Exception) -> str:
    """Return the package that an error is of."""
    return type(error).__module__.partition(".")[0]


def tell(name: str, error: Exception) -> NoReturn:
    """Raise the error of a disk, or one line about the object `name`, in place of a library's."""
    if isinstance(error, AddressError | io.UnsupportedOperation):
        raise error
    for kind, number in ((FileNotFoundError, 2), (FileExistsError, 17)):
        if isinstance(error, kind):
            raise kind(number, os.strerror(number), name) from None
    reason, code = first_line(error)[:200], status_of(error)
    words = reason.lower()
    if code in (401, 403) or any(w in words for w in ("forbidden", "credentials", "permission")):
        raise AddressError(
            f"{name} is refused ({reason}): log in, or ask for the permission"
        ) from None
    if code == 404:
        raise FileNotFoundError(2, os.strerror(2), name) from None
    if may_pass(error):
        raise AddressError(
            f"{name} cannot be reached ({reason}): see that the store is up, and start again"
        ) from None
    if isinstance(error, OSError | ValueError) or _origin(error) in ORIGINS:
        raise AddressError(f"{name} cannot be used ({reason}): check the address") from None
    raise error
