"""Errors that a user can cause: each message is one line that says what to do.

Every room derives its own from `UserError`; a command catches that one class, prints the line and
exits. Anything else is a fault of the program and keeps its traceback.
"""

import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of the operating system when there is no room for a file."""


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


def one_line(text: str) -> str:
    """Return `text` with what is no printable character, such as a line break, as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def full_disk(error: BaseException | None) -> str | None:
    """Return the system's words for a full disk if `error` comes from one, else None.

    Libraries wrap the system's error in types of their own, some of them only its text.
    """
    while error is not None:
        for number in FULL:
            words = os.strerror(number)
            if getattr(error, "errno", None) == number or words.lower() in str(error).lower():
                return words.lower()
        error = error.__cause__ or error.__context__
    return None
