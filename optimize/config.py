"""Plain values to config dataclasses and back: what recipe files and ``--set`` need. No torch import."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar, Union

from models.errors import ConfigError, explain, nearest

_T = TypeVar("_T")


def build(config_type: type[_T], values: Mapping[str, Any], *, where: str = "") -> _T:
    """Build a dataclass from plain values: lists become tuples, text becomes paths or enums, mappings dataclasses.

    Args:
        config_type: A dataclass; fields without a default must be in ``values``.
        values: What YAML or JSON gives.
        where: Place of ``values`` in the recipe, for error texts, for example ``"distill"``.

    Raises:
        ConfigError: An unknown key (the nearest is named), a value of another kind, or one that the config refuses.
    """
    if not isinstance(values, Mapping):
        fix = "write keys and values, or leave the section out"
        raise ConfigError(explain(_label(where), expected="a mapping", got=repr(values), fix=fix))
    fields = {field.name: field for field in dataclasses.fields(config_type) if field.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            close = nearest(str(key), fields)
            fix = f"use {close!r}" if close else "remove it"
            raise ConfigError(explain(_label(where), expected=" | ".join(fields), got=repr(key), fix=fix))
    hints = _hints(config_type)
    given = {key: convert(value, hints[key], where=_join(where, key)) for key, value in values.items()}
    lacking = [name for name, field in fields.items() if name not in given and _is_required(field)]
    if lacking:
        raise ConfigError(explain(_label(where), expected=", ".join(lacking), got="nothing", fix="add it"))
    try:
        return config_type(**given)
    except ConfigError as error:
        raise ConfigError(f"{_label(where)}: {error}" if where else str(error)) from error


def convert(value: Any, hint: Any, *, where: str) -> Any:
    """Turn one plain value into what the type ``hint`` asks for.

    Raises:
        ConfigError: It is of another kind.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, hint, where)
    if origin is Literal:
        return value if value in arguments else _refuse_name(value, arguments, where)
    if origin is tuple or hint is tuple:
        return _convert_tuple(value, arguments, where)
    if origin in (list, Sequence) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return list(_convert_tuple(value, (arguments[0], ...), where))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return _refuse(value, "keys and values", where)
        return {key: convert(part, arguments[1], where=_join(where, str(key))) for key, part in value.items()}
    return _convert_plain(value, hint, where)


def to_plain(value: Any) -> Any:
    """Turn configs into what YAML and JSON can hold: dicts, lists, text, numbers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(part) for key, part in value.items()}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(part) for part in value]
    return value


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested mappings into ``{"distill.fit.seed": 0}``."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, _join(prefix, str(key))))
        else:
            flat[_join(prefix, str(key))] = value
    return flat


def assign(content: dict[str, Any], key: str, value: Any) -> None:
    """Set ``content["distill"]["fit"]["seed"]`` for the key ``distill.fit.seed``, making sections on the way.

    Raises:
        ConfigError: A section on the way holds a value.
    """
    *sections, last = key.split(".")
    for index, section in enumerate(sections, start=1):
        inner = content.get(section)
        if inner is not None and not isinstance(inner, Mapping):
            _refuse(inner, "a mapping", ".".join(sections[:index]), fix="write keys and values, or leave it out")
        content[section] = inner = dict(inner or {})
        content = inner
    content[last] = value


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``, section by section."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _hints(config_type: type[Any]) -> dict[str, Any]:
    """Resolve annotations, also those that their module imports for type checkers only."""
    return typing.get_type_hints(
        config_type, localns={"Path": Path, "Mapping": Mapping, "Any": Any, "Literal": Literal}
    )


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert_union(value: Any, arguments: tuple[Any, ...], hint: Any, where: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    errors = []
    for option in arguments:
        if option is type(None):
            continue
        try:
            return convert(value, option, where=where)
        except ConfigError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    return _refuse(value, str(hint), where)


def _convert_tuple(value: Any, arguments: tuple[Any, ...], where: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Sequence):
        _refuse(value, "a list", where)
    if not arguments:
        return tuple(value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(convert(part, arguments[0], where=f"{where}[{index}]") for index, part in enumerate(value))
    if len(value) != len(arguments):
        _refuse(value, f"{len(arguments)} values", where)
    return tuple(convert(part, kind, where=where) for part, kind in zip(value, arguments, strict=True))


def _convert_plain(value: Any, hint: Any, where: str) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return _refuse(value, "a finite number", where, fix="correct the value, or leave it out")
    if not isinstance(hint, type) or (isinstance(value, hint) and not (hint is int and isinstance(value, bool))):
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, where=where)
    if issubclass(hint, Enum):
        known = [str(member.value) for member in hint]
        return hint(value) if value in known else _refuse_name(value, known, where)
    if hint is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            number = float(value)  # YAML reads 1e-4 as text
        except (ValueError, OverflowError):
            return _refuse(value, "a number", where)
        return _convert_plain(number, hint, where)
    if issubclass(hint, PurePath) and isinstance(value, str):
        return Path(value)
    kinds = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    return _refuse(value, kinds.get(hint, hint.__name__), where)


def _refuse(value: Any, expected: str, where: str, *, fix: str = "correct the value") -> Any:
    raise ConfigError(explain(_label(where), expected=expected, got=repr(value), fix=fix))


def _refuse_name(value: Any, known: Sequence[Any], where: str) -> Any:
    """Refuse a name that is not one of ``known``; the nearest is suggested."""
    close = nearest(str(value), map(str, known))
    _refuse(value, " | ".join(map(str, known)), where, fix=f"use {close!r}" if close else "use one of these")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


def _label(where: str) -> str:
    return f"config {where}" if where else "config"
