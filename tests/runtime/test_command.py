"""One place turns what a user can cause into one line and an exit code."""

import errno
import os

import pytest

from mfm_jax.errors import UsageError, UserError
from mfm_jax.runtime.command import run_command


class Failed(UserError):
    exit_code = 1


def raising(error):
    def call():
        raise error

    return call


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UsageError("give a folder"), 2, "mfm x: give a folder"),
        (Failed("one of two failed"), 1, "mfm x: one of two failed"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a/b"), 2,
         "mfm x: a/b: permission denied"),
        (KeyboardInterrupt(), 130, "mfm x: stopped"),
    ],
)  # fmt: skip
def test_what_a_user_can_cause_is_one_line(error, code, line, capsys):
    assert run_command("mfm x", raising(error)) == code
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("error", [ValueError("wrong"), OSError("no file is named")])
def test_a_fault_of_the_program_keeps_its_traceback(error):
    with pytest.raises(type(error), match=str(error)):
        run_command("mfm x", raising(error))


def test_the_exit_code_is_that_of_the_command(capsys):
    assert [run_command("mfm x", lambda code=code: code) for code in (0, 1)] == [0, 1]
    assert capsys.readouterr().err == ""
