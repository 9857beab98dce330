"""Stop a run when it is asked to, or when its machine is about to go.

Clouds take a machine back with a SIGTERM and half a minute to live. Google's machines also say so
in their metadata, some of them minutes before (cloud.google.com/compute/docs/metadata,
`instance/preempted` and `instance/maintenance-event`).
"""

import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils

GRACE = 25.0
"""Seconds after which it is told that a run that was asked to stop is not saved yet."""
HOST = "GCE_METADATA_HOST"
"""The environment variable that names a server of metadata, as Google's libraries read it."""
MACHINE = Path("/sys/class/dmi/id/product_name")
"""Says "Google Compute Engine" on Google's machines."""
NOTICES = {"preempted": ("TRUE",), "maintenance-event": ("TERMINATE_ON_HOST_MAINTENANCE",)}
"""What the metadata say of a machine that is about to go."""
POLL = 5.0
"""Seconds between two looks at the metadata."""


class Stop:
    """Turns the first SIGTERM or SIGINT into a request to stop after the current step.

    A notice in the metadata of the machine counts as SIGTERM. A second SIGINT, and every signal
    before and after the block, does what it did before. SIGTERM to any one of several processes
    stops all of them, at the same step. The block ends once the run is saved; if that takes longer
    than `GRACE`, it is told what is saved.

    Args:
        saved: returns the step of the newest complete checkpoint, if there is any.
        say: prints a line.
    """

    def __init__(
        self,
        saved: Callable[[], int | None] = lambda: None,
        say: Callable[[str], object] = print,
    ) -> None:
        self.signal, self._together = 0, jax.process_count() > 1
        self.saved, self.say = saved, say
        self._before: dict[int, Any] = {}
        self._over = threading.Event()
        self._late: threading.Timer | None = None

    def __enter__(self) -> "Stop":
        # JAX waits for the SIGTERM of several processes itself.
        for number in () if self._together else (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._remember)
        if host := metadata_host():
            threading.Thread(target=self._watch, args=(host,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        if self._late is not None:
            self._late.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def at(self, step: int) -> bool:
        """Return True if the run should stop now that `step` steps are done."""
        stopped = (
            multihost_utils.reached_preemption_sync_point(step)
            if self._together
            else bool(self.signal)
        )
        if stopped:
            self._hurry()
        return stopped

    def _remember(self, number: int, _) -> None:
        self.signal = number
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
        self._hurry()

    def _hurry(self) -> None:
        """Let it be told if the run is not saved in time."""
        if self._late is None and not self._over.is_set():
            self._late = threading.Timer(GRACE, self._tell)
            self._late.daemon = True
            self._late.start()

    def _tell(self) -> None:
        step = self.saved()
        then = "begins anew" if step is None else f"continues from step {step}"
        self.say(
            f"not saved {GRACE:g} s after the run was asked to stop: if it is killed now, the same "
            f"command {then}"
        )

    def _watch(self, host: str) -> None:
        """Send this process a SIGTERM once the metadata say that its machine is about to go."""
        while not self._over.wait(POLL):
            if notice := is_about_to_go(host):
                self.say(f"this machine is about to go ({notice}): the run is saved and stops")
                os.kill(os.getpid(), signal.SIGTERM)
                return


def metadata_host() -> str | None:
    """Return the server of the machine's metadata; None where there is none."""
    if host := os.environ.get(HOST):
        return host
    with suppress(OSError):
        if MACHINE.read_text().startswith("Google"):
            return "metadata.google.internal"
    return None


def is_about_to_go(host: str) -> str | None:
    """Return the notice that the machine is about to go, if there is one."""
    for name, signs in NOTICES.items():
        request = urllib.request.Request(
            f"http://{host}/computeMetadata/v1/instance/{name}",
            headers={"Metadata-Flavor": "Google"},
        )
        with suppress(OSError), urllib.request.urlopen(request, timeout=POLL) as answer:
            told = answer.read(100).decode(errors="replace").strip()
            if told in signs:
                return f"{name} {told}"
    return None
