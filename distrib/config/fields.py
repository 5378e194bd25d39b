"""How a configuration field describes itself, once, for the command line and for YAML.

A section is a frozen dataclass whose fields are made with :func:`option` or :func:`argument`. The field's
name is its YAML key, its annotation is its type, its metadata (:class:`FieldInfo`) holds what the command
line needs besides: flags, help, bounds.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

_METADATA_KEY = "ketos"


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """What the command line needs to know of a field besides its name, type and default.

    ``flags`` is empty for positional arguments. ``minimum``/``maximum`` are inclusive, ``above`` is
    exclusive. ``metavar`` names the value in the help text.
    """

    flags: tuple[str, ...] = ()
    off_flags: tuple[str, ...] = ()
    help: str = ""
    metavar: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    positional: bool = False
    count: bool = False


@dataclass(frozen=True, kw_only=True)
class FieldType:
    """A field's annotation taken apart: ``tuple[Path, ...]`` is base Path, many; ``X | None`` is optional."""

    base: type
    choices: tuple[str, ...] = ()
    optional: bool = False
    many: bool = False
    mapping: bool = False


def option(default: Any, *flags: str, off: tuple[str, ...] = (), help: str, **info: Any) -> Any:
    """A field given by command-line ``flags`` (first long, then short) or by its YAML key."""
    field_info = FieldInfo(flags=flags, off_flags=off, help=help, **info)
    return dataclasses.field(default=default, metadata={_METADATA_KEY: field_info})


def argument(metavar: str) -> Any:
    """A field filled by the positional arguments of the command (or by its YAML key)."""
    info = FieldInfo(positional=True, metavar=metavar)
    return dataclasses.field(default=(), metadata={_METADATA_KEY: info})


def info_of(field: dataclasses.Field[Any]) -> FieldInfo:
    """The description of a section's field."""
    info: FieldInfo = field.metadata[_METADATA_KEY]
    return info


def types_of(section: type) -> dict[str, FieldType]:
    """The taken-apart type of each field of a section, by field name."""
    hints = typing.get_type_hints(section)
    return {field.name: _take_apart(hints[field.name]) for field in dataclasses.fields(section)}


def _take_apart(hint: Any) -> FieldType:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        rest = [each for each in arguments if each is not type(None)]
        mapping = any(typing.get_origin(each) is dict for each in rest)
        plain = next(each for each in rest if typing.get_origin(each) is not dict)
        return dataclasses.replace(_take_apart(plain), optional=type(None) in arguments, mapping=mapping)
    if origin is Literal:
        return FieldType(base=str, choices=tuple(arguments))
    if origin is tuple:
        return dataclasses.replace(_take_apart(arguments[0]), many=True)
    if hint in (bool, int, float, str, Path):
        return FieldType(base=hint)
    raise TypeError(f"a configuration field cannot be of type {hint}")
