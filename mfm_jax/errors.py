"""Errors that a user can cause: each message is one line that says what to do.

Every room derives its own from `UserError`; a command catches that one class, prints the line and
exits. Anything else is a fault of the program and keeps its traceback.
"""


class UserError(ValueError):
    """An input that cannot be used; the message says what to do."""

    exit_code = 2
    """With which a command that meets it ends: wrong usage, unless a subclass says otherwise."""


class UsageError(UserError):
    """A command line that cannot be carried out as given."""


class SettingError(UserError):
    """A field that does not exist or a value that it cannot have; the message names the field."""


class MediaError(UserError):
    """An audio or video file that cannot be read or written."""


class WriteError(UserError):
    """A file that cannot be written: no room, no permission, or a folder in its place."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, or the name of the error if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def system_reason(error: OSError) -> str:
    """The operating system's reason, in the lower case that our messages continue with."""
    return (error.strerror or str(error)).lower()
