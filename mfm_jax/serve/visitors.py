"""Who asks, and how often: new jobs are limited for each address."""

import threading
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address

from mfm_jax.serve.limits import Refused

MINUTE = 60.0
KNOWN = 10_000
"""Addresses that are remembered at most."""


def visitor_of(address: str | None) -> str:
    """Return what stands for a visitor: the address, or of IPv6 the network that one visitor has.

    Args:
        address: of the connection; None if there is none, as with a Unix socket.
    """
    try:
        found = ip_address(address or "")
    except ValueError:
        return address or "unknown"
    if isinstance(found, IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(IPv6Address(int(found) >> 64 << 64)) + "/64"
    return str(found)


class Visitors:
    """Lets each visitor begin so many jobs a minute, all at once or one after the other."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute, self._clock = per_minute, clock
        self._lock = threading.Lock()
        self._left: dict[str, tuple[float, float]] = {}  # jobs left, and at what time

    def admit(self, visitor: str) -> None:
        """Count a new job of a visitor.

        Raises:
            Refused: there were too many in the last minute.
        """
        now, rate = self._clock(), self._per_minute / MINUTE
        with self._lock:
            left, at = self._left.pop(visitor, (float(self._per_minute), now))
            left = min(self._per_minute, left + (now - at) * rate)
            self._left[visitor] = (left - 1 if left >= 1 else left, now)
            if len(self._left) > KNOWN:
                self._left.pop(next(iter(self._left)))
        if left < 1:
            raise Refused(
                429,
                f"more than {self._per_minute} videos a minute: wait a little",
                retry_after=max(1, round((1 - left) / rate)),
            )
