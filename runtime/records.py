"""Frozen records read from mappings: unknown keys, missing keys and wrong types are reported all at once."""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from .errors import ConfigError

T = TypeVar("T")

MAX_FAULTS = 20
"""Faults a message names; a damaged file may have as many as it has bytes."""
_MAX_SHOWN = 80


def from_mapping(record: type[T], mapping: object, where: str) -> T:
    """Returns ``record`` built from ``mapping``, nested records included.

    Args:
        record: A frozen dataclass whose annotations are plain types, other dataclasses, ``dict[str, X]``,
            ``tuple[X, ...]``, ``Literal[...]`` or unions of these.
        mapping: What a TOML or JSON file held.
        where: What is being read, for messages (``"recipe quickstart/teacher.toml"``).

    Raises:
        ConfigError: Naming every fault found, with its dotted path.
    """
    faults: list[str] = []
    value = _build(record, mapping, "", faults)
    if faults:
        more = [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise ConfigError(f"{where}: " + "; ".join([*faults[:MAX_FAULTS], *more]))
    return typing.cast("T", value)


def to_mapping(record: object) -> Any:
    """Returns ``record`` as plain dicts, lists and scalars, ready for JSON; ``None`` fields are kept."""
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        return {f.name: to_mapping(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, Mapping):
        return {str(key): to_mapping(value) for key, value in record.items()}
    if isinstance(record, (list, tuple)):
        return [to_mapping(value) for value in record]
    return record


def _build(kind: Any, value: object, path: str, faults: list[str]) -> object:
    """Returns ``value`` as ``kind``; appends to ``faults`` what does not fit."""
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _build_record(kind, value, path, faults)
    if origin in (typing.Union, types.UnionType):
        return _build_union(kind, value, path, faults)
    if origin is typing.Literal:
        if value not in typing.get_args(kind):
            choices = ", ".join(repr(choice) for choice in typing.get_args(kind))
            faults.append(f"{path or 'value'} is {_shown(value)}, expected one of {choices}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            faults.append(f"{path} is {_shown(value)}, expected a list")
            return ()
        item = typing.get_args(kind)[0]
        if set(map(type, value)) == {item}:
            return tuple(value)
        return tuple(_build(item, entry, f"{path}[{i}]", faults) for i, entry in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            faults.append(f"{path} is {_shown(value)}, expected a table")
            return {}
        item = typing.get_args(kind)[1]
        return {str(key): _build(item, entry, f"{path}.{key}", faults) for key, entry in value.items()}
    return _build_scalar(kind, value, path, faults)


def _build_record(kind: type, value: object, path: str, faults: list[str]) -> object:
    if not isinstance(value, Mapping):
        faults.append(f"{path or 'the top level'} is {_shown(value)}, expected a table")
        return None
    fields = {f.name: f for f in dataclasses.fields(kind)}
    hints = _hints(kind)
    dot = f"{path}." if path else ""
    before = len(faults)
    unknown = [key for key in value if key not in fields]
    faults += [f"unknown key {dot}{key[:_MAX_SHOWN]} (known: {', '.join(sorted(fields))})" for key in unknown]
    missing = [
        name
        for name, f in fields.items()
        if name not in value and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    faults += [f"missing key {dot}{name}" for name in missing]
    arguments = {
        name: _build(hints[name], entry, f"{dot}{name}", faults) for name, entry in value.items() if name in fields
    }
    if len(faults) > before:
        return None
    try:
        return kind(**arguments)
    except ValueError as error:
        faults.append(f"{path + ': ' if path else ''}{error}")
        return None


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    """Returns the resolved annotations of a record: slow to resolve, and samples are read by the hundred thousand."""
    return typing.get_type_hints(kind)


def _build_union(kind: Any, value: object, path: str, faults: list[str]) -> object:
    tried: list[list[str]] = []
    for choice in typing.get_args(kind):
        if choice is type(None):
            if value is None:
                return None
            continue
        attempt: list[str] = []
        built = _build(choice, value, path, attempt)
        if not attempt:
            return built
        tried.append(attempt)
    nearest = sorted(tried, key=len)[:1] or [[f"{path} is {_shown(value)}"]]
    faults += nearest[0]
    return None


def _build_scalar(kind: Any, value: object, path: str, faults: list[str]) -> object:
    if kind is Any or kind is object:
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            faults.append(f"{path or 'value'} is {_shown(value)}, too large for a float")
            return value
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        faults.append(f"{path or 'value'} is {_shown(value)}, expected {kind.__name__}")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "..."
