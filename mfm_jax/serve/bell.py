"""Wakes coroutines when a thread has changed something."""

import asyncio
from contextlib import suppress


class Bell:
    """Everybody who waits for its next ring hears it."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()

    def hang(self) -> None:
        """Let it ring in the event loop that is running."""
        self._loop = asyncio.get_running_loop()

    def ring(self) -> None:
        """Ring, from any thread."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._ring)

    @property
    def next(self) -> asyncio.Event:
        """The next ring. Take it before you look whether to wait for it."""
        return self._next

    def _ring(self) -> None:
        self._next.set()
        self._next = asyncio.Event()


async def heard(event: asyncio.Event, seconds: float) -> bool:
    """Wait for a ring; return False if there is none for so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
