"""How long-running work reports its progress: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from threading import Event, Lock, Thread
from types import TracebackType

from mfm_jax.errors import one_line
from mfm_jax.runtime.throughput import Throughput

BEAT = 1.0
"""Seconds between looks at the rates."""
EVERY = 10.0
"""Seconds from one line to the next, where there is no terminal."""


class Progress:
    """Counts `total` things named `unit`; without a terminal, prints a line every ten seconds."""

    def __init__(self, total: int | None, unit: str, *, done: int = 0) -> None:
        self.unit, self.total, self.done, self.bar = unit, total, done, None
        self._lock, self._over = Lock(), Event()
        self._throughput: Throughput | None = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=done, unit=f" {unit}")
        self.reported = time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def watch(self, total: int, throughput: Throughput) -> None:
        """Show rates beside the count of `total`, also while nothing is counted."""
        self.total, self._throughput = total, throughput
        if self.bar is not None:
            self.bar.total = total
            self.bar.refresh()
        Thread(target=self._beat, name="progress", daemon=True).start()

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self.advance(0)

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more things as done."""
        with self._lock:
            self.done += amount
            if self.bar is not None:
                self.bar.update(amount)
                if self._throughput is not None:
                    self.bar.set_postfix_str(str(self._throughput))
            elif time.monotonic() - self.reported > EVERY:
                self.reported = time.monotonic()
                of = "" if self.total is None else f" of {self.total}"
                rates = str(self._throughput) if self._throughput is not None else ""
                self.say(f"{self.done}{of} {self.unit}{f', {rates}' if rates else ''}")

    def show(self, text: str) -> None:
        """Put `text` at the end of the bar."""
        if self.bar is not None:
            self.bar.set_postfix_str(text)

    def say(self, line: str) -> None:
        """Print a line without tearing the bar."""
        line = one_line(line)
        if self.bar is not None:
            self.bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Finish the bar."""
        self._over.set()
        if self.bar is not None:
            self.bar.close()
