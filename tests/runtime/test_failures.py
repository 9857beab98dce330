"""Why one of many failed: one line, and a record where nobody expected it."""

import errno
import os

import pytest

from mfm_jax.errors import MediaError
from mfm_jax.runtime.failures import LOG, FailureLog

KNOWN = [
    (MediaError("a.mp4 is empty: copy it\nagain"), "a.mp4 is empty: copy it\\nagain"),
    (PermissionError(errno.EACCES, "Permission denied", "b.json"), "b.json: permission denied"),
    (RuntimeError("INTERNAL: No space left on device; x"),
     "a.mp4: no space left on device: make room and start again"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "line"), KNOWN)
def test_what_is_no_fault_of_the_program_is_not_recorded(error, line, tmp_path):
    assert FailureLog(tmp_path).reason("a.mp4", error) == line
    assert not list(tmp_path.iterdir())


def test_a_fault_of_the_program_is_recorded_with_its_place(tmp_path):
    log, name = FailureLog(tmp_path), os.fsdecode(b"caf\xe9.mp4")
    for _ in range(2):
        try:
            [][3]
        except IndexError as error:
            reason = log.reason(name, error)
    assert reason.startswith(f"{ascii(name)[1:-1]}: a fault of the program (IndexError in test_fai")
    assert reason.endswith(f"list index out of range), recorded in {tmp_path / LOG}")
    record = (tmp_path / LOG).read_text()
    assert record.count("Traceback (most recent call last)") == 2
    assert "[][3]" in record
    assert FailureLog(tmp_path / "absent").reason("a", ValueError()).startswith("a: a fault")
