"""Settings in the JSON files of transformers and diffusers, read so that none of them is guessed.

`what` says in an error which file is meant.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from convert.table import ConversionError


def required(theirs: Mapping, names: Iterable[str], what: str) -> None:
    """See that a file says all that is read.

    Raises:
        ConversionError: lists the settings that are missing.
    """
    missing = [name for name in names if name not in theirs]
    if missing:
        raise ConversionError(f"{what}: {', '.join(missing)} not given")


def builtin(theirs: Mapping, values: Mapping[str, Any], what: str) -> None:
    """See that a file says nothing else than what a network has built in.

    It may leave such a setting out. Where the library would then take another value, the setting
    is `required` as well.

    Raises:
        ConversionError: a setting has another value.
    """
    for name, value in values.items():
        if theirs.get(name, value) != value:
            raise ConversionError(f"{what}: {name} must be {value}, is {theirs[name]}")


def count(theirs: Mapping, name: str, what: str) -> int:
    """A number of things: at least one.

    Raises:
        ConversionError: it is missing, or something else.
    """
    required(theirs, [name], what)
    if not _counts(theirs[name]):
        raise ConversionError(f"{what}: {name} must be a positive integer, is {theirs[name]}")
    return theirs[name]


def counts(theirs: Mapping, name: str, what: str) -> tuple[int, ...]:
    """Several of them in a list.

    Raises:
        ConversionError: it is missing, or something else.
    """
    required(theirs, [name], what)
    values = theirs[name]
    if not isinstance(values, list | tuple) or not values or not all(map(_counts, values)):
        raise ConversionError(f"{what}: {name} must be a list of positive integers, is {values}")
    return tuple(values)


def number(theirs: Mapping, name: str, what: str) -> float:
    """A positive number.

    Raises:
        ConversionError: it is missing, or something else.
    """
    required(theirs, [name], what)
    value = theirs[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConversionError(f"{what}: {name} must be a positive number, is {value}")
    return float(value)


def one_of(theirs: Mapping, name: str, choices: Mapping[Any, Any], what: str) -> Any:
    """Ours of the `choices`, which are listed by what they are called there.

    Raises:
        ConversionError: it is missing, or not among them.
    """
    required(theirs, [name], what)
    if theirs[name] not in list(choices):
        known = " or ".join(map(str, choices))
        raise ConversionError(f"{what}: {name} must be {known}, is {theirs[name]}")
    return choices[theirs[name]]


def divides(whole: int, name: str, parts: int, by: str, what: str) -> None:
    """See that `whole`, which is called `name`, splits into as many equal parts as `by` says.

    Raises:
        ConversionError: it does not.
    """
    if whole % parts:
        raise ConversionError(f"{what}: {name} {whole} is no multiple of {by} {parts}")


def _counts(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
