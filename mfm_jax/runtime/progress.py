"""How long-running work reports its progress: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType

from mfm_jax.errors import one_line


class Progress:
    """Counts `total` things named `unit`; without a terminal, prints a line every ten seconds."""

    def __init__(self, total: int | None, unit: str, *, done: int = 0) -> None:
        self.unit, self.total, self.done, self.bar = unit, total, done, None
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

    def advance(self, amount: int = 1) -> None:
        """Count `amount` more things as done."""
        self.done += amount
        if self.bar is not None:
            self.bar.update(amount)
        elif time.monotonic() - self.reported > 10:
            self.reported = time.monotonic()
            of = "" if self.total is None else f" of {self.total}"
            self.say(f"{self.done}{of} {self.unit}")

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
        if self.bar is not None:
            self.bar.close()
