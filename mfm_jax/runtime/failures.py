"""Failures of one item of many: the line that tells it, and the record of the program's faults."""

import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mfm_jax.errors import UserError, first_line, full_disk, one_line, system_reason

LOG = "failures.log"
"""The file with the tracebacks of exceptions that nobody expected."""


@dataclass(frozen=True)
class FailureLog:
    """Says why an item failed. The file is made with the first unexpected exception."""

    folder: Path

    def reason(self, item: str, error: Exception) -> str:
        """Return the reason in one line. An unexpected exception is recorded with its traceback.

        Args:
            item: the name of what failed.
        """
        if isinstance(error, UserError):
            return one_line(str(error))
        if isinstance(error, OSError) and error.filename is not None:
            return one_line(f"{error.filename}: {system_reason(error)}")
        if reason := full_disk(error):
            return one_line(f"{item}: {reason}: make room and start again")
        self._record(item, error)
        what = f"{type(error).__name__}{_place(error)}: {first_line(error)[:200]}"
        return one_line(f"{item}: a fault of the program ({what}), recorded in {self.folder / LOG}")

    def _record(self, item: str, error: Exception) -> None:
        lines = [f"{time.strftime('%Y-%m-%d %H:%M:%S')} {one_line(item)}\n"]
        lines += traceback.format_exception(error)
        with (
            suppress(OSError),  # the reason is told in any case
            (self.folder / LOG).open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):
            file.write("".join([*lines, "\n"]))


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" in {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
