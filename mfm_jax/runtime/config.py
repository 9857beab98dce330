"""Configs are frozen dataclasses: to JSON and back, and `a.b=v` overrides typed by the fields."""

import dataclasses
import json
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from mfm_jax.errors import SettingError

C = TypeVar("C")


def later(default: Any) -> Any:
    """Return a field that its class got after configs of it had been stored.

    It is stored only where it is set. So a config without it stays the same to the letter, as do
    checksums of it, and versions from before read it.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def to_json(config: Any) -> Any:
    """Return `config` as dicts, lists, strings and numbers."""
    if dataclasses.is_dataclass(config):
        fields = {f.name: (f, getattr(config, f.name)) for f in dataclasses.fields(config)}
        return {
            name: to_json(value)
            for name, (field, value) in fields.items()
            if not (field.metadata.get("later") and value == field.default)
        }
    if isinstance(config, tuple):
        return [to_json(item) for item in config]
    return config


def from_json(kind: type[C], data: Any, where: str = "config") -> C:
    """Invert `to_json` for a value of type `kind`; `where` names it in errors.

    Raises:
        SettingError: an unknown or missing field, or a value of another type.
    """
    return _read(kind, data, where)


def override(config: C, assignments: Iterable[str]) -> C:
    """Return `config` with each `"a.b=value"` applied. Values are JSON; bare words are strings.

    Raises:
        SettingError: no such field, or a value of another type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise SettingError(f"{assignment!r} is not of the form field.field=value")
        config = _replace(config, path.split("."), text, path)
    return config


def _replace(config: Any, path: list[str], text: str, where: str) -> Any:
    kinds = _fields(config, where)
    if path[0] not in kinds:
        known = ", ".join(kinds)
        raise SettingError(
            f"{where}: {type(config).__name__} has no field {path[0]!r}; it has {known}"
        )
    if len(path) > 1:
        value = _replace(getattr(config, path[0]), path[1:], text, where)
    else:
        value = _read(kinds[path[0]], _parse(text), where)
    return dataclasses.replace(config, **{path[0]: value})


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or more digits or brackets than Python reads
        return {"None": None, "True": True, "False": False}.get(text, text)


def _fields(config: Any, where: str) -> dict[str, Any]:
    if not dataclasses.is_dataclass(config):
        raise SettingError(f"{where}: {config!r} has no fields")
    kind = config if isinstance(config, type) else type(config)
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(config) if f.init}


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(args, data, where)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, data, where)
    if origin is tuple:
        return _read_tuple(args, data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is Any or (type(data) is kind) or (data is None and kind is types.NoneType):
        return data
    raise SettingError(f"{where} should be {getattr(kind, '__name__', kind)}, not {_shown(data)}")


def _shown(data: Any) -> str:
    text = repr(data)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _read_union(kinds: tuple, data: Any, where: str) -> Any:
    for kind in kinds:
        try:
            return _read(kind, data, where)
        except SettingError:
            continue
    names = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise SettingError(f"{where} should be {names}, not {_shown(data)}")


def _read_tuple(kinds: tuple, data: Any, where: str) -> tuple:
    if not isinstance(data, list | tuple):
        raise SettingError(f"{where} should be a list, not {_shown(data)}")
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(data)
    if len(kinds) != len(data):
        raise SettingError(f"{where} should have {len(kinds)} values, not {len(data)}")
    return tuple(
        _read(kind, item, f"{where}[{i}]")
        for i, (kind, item) in enumerate(zip(kinds, data, strict=True))
    )


def _read_dataclass(kind: type, data: Any, where: str) -> Any:
    if isinstance(data, str) and hasattr(kind, "from_text"):
        return kind.from_text(data)
    if not isinstance(data, dict):
        raise SettingError(f"{where} should be a {kind.__name__}, not {_shown(data)}")
    kinds = _fields(kind, where)
    unknown = sorted(data.keys() - kinds.keys())
    if unknown:
        raise SettingError(f"{where} has unknown fields: {', '.join(unknown)}")
    values = {n: _read(k, data[n], f"{where}.{n}") for n, k in kinds.items() if n in data}
    try:
        return kind(**values)
    except TypeError as error:
        raise SettingError(f"{where}: {error}") from None
