"""Read settings from the JSON files of transformers and diffusers, without guessing any.

`file` names the file in errors.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from convert.table import ConversionError


def required(theirs: Mapping, names: Iterable[str], file: str) -> None:
    """Require settings.

    Raises:
        ConversionError: lists the settings that are missing.
    """
    missing = [name for name in names if name not in theirs]
    if missing:
        raise ConversionError(f"{file}: {', '.join(missing)} not given")


def builtin(theirs: Mapping, values: Mapping[str, Any], file: str) -> None:
    """Check settings that our network has built in.

    The file may omit such a setting. Where the library would then use another value, the setting is
    `required` as well.

    Raises:
        ConversionError: a setting has another value.
    """
    for name, value in values.items():
        if theirs.get(name, value) != value:
            raise ConversionError(f"{file}: {name} must be {value}, is {theirs[name]}")


def integer(theirs: Mapping, name: str, file: str) -> int:
    """Return a positive integer.

    Raises:
        ConversionError: it is missing, or something else.
    """
    required(theirs, [name], file)
    if not _is_positive_integer(theirs[name]):
        raise ConversionError(f"{file}: {name} must be a positive integer, is {theirs[name]}")
    return theirs[name]


def integers(theirs: Mapping, name: str, file: str) -> tuple[int, ...]:
    """Return a list of positive integers.

    Raises:
        ConversionError: it is missing, or something else.
    """
    required(theirs, [name], file)
    values = theirs[name]
    is_list = isinstance(values, list | tuple) and len(values) > 0
    if not is_list or not all(map(_is_positive_integer, values)):
        raise ConversionError(f"{file}: {name} must be a list of positive integers, is {values}")
    return tuple(values)


def number(theirs: Mapping, name: str, file: str) -> float:
    """Return a positive number.

    Raises:
        ConversionError: it is missing, or something else.
    """
    required(theirs, [name], file)
    value = theirs[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConversionError(f"{file}: {name} must be a positive number, is {value}")
    return float(value)


def one_of(theirs: Mapping, name: str, choices: Mapping[Any, Any], file: str) -> Any:
    """Return our value for one of their `choices` (ours by theirs).

    Raises:
        ConversionError: it is missing, or not among them.
    """
    required(theirs, [name], file)
    if theirs[name] not in list(choices):
        known = " or ".join(map(str, choices))
        raise ConversionError(f"{file}: {name} must be {known}, is {theirs[name]}")
    return choices[theirs[name]]


def divides(total: int, name: str, parts: int, by: str, file: str) -> None:
    """Check that setting `name`, with the value `total`, is a multiple of `parts`, setting `by`.

    Raises:
        ConversionError: it is not.
    """
    if total % parts:
        raise ConversionError(f"{file}: {name} {total} is no multiple of {by} {parts}")


def _is_positive_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
