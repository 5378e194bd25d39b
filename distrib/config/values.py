"""Turning raw values into a section, with a sentence for each one that is wrong."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from distrib.config.fields import FieldInfo, FieldType, info_of, types_of
from distrib.errors import InputError

SectionT = TypeVar("SectionT")


def make_section(section: type[SectionT], name: str, *layers: Mapping[str, Any]) -> SectionT:
    """A section built from layers of raw values, later layers winning over earlier ones.

    ``name`` stands in messages (empty for the globals). Raises InputError for an unknown key, a value of
    the wrong type or one out of bounds.
    """
    field_types = types_of(section)
    fields = {field.name: field for field in dataclasses.fields(section)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for layer in layers:
        for key, raw in layer.items():
            where = f"`{name}.{key}`" if name else f"`{key}`"
            if key not in fields:
                raise InputError(
                    f"{where} is not an option{nearest(str(key), fields)}; correct or remove it."
                )
            info = info_of(fields[key])
            where += f" ({', '.join(info.flags)})" if info.flags else ""
            value = _convert(raw, field_types[key], where)
            _check_bounds(value, info, where)
            values[key] = value
    return section(**values)


def nearest(word: str, known: Iterable[str]) -> str:
    """`` (did you mean `x`?)`` for the known name most like ``word``, or nothing."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" (did you mean `{close[0]}`?)" if close else ""


def _convert(raw: Any, field_type: FieldType, where: str) -> Any:
    if raw is None:
        if field_type.optional:
            return None
        if field_type.many:
            return ()
        raise InputError(f"{where} is empty; give it a value or remove it.")
    if field_type.many:
        items = [raw] if isinstance(raw, str | Path) else raw
        if not isinstance(items, list | tuple):
            raise InputError(f"{where} must be a list, not {raw!r}.")
        return tuple(_convert_one(item, field_type, where) for item in items)
    return _convert_one(raw, field_type, where)


def _convert_one(raw: Any, field_type: FieldType, where: str) -> Any:
    if field_type.mapping and isinstance(raw, Mapping):
        return dict(raw)
    if field_type.choices:
        if raw in field_type.choices:
            return raw
        raise InputError(f"{where} is {raw!r}; allowed are {', '.join(field_type.choices)}.")
    base = field_type.base
    if base is bool:
        return _require(raw, isinstance(raw, bool), "true or false", where)
    if base is int:
        number = int(raw) if isinstance(raw, float) and raw.is_integer() else raw
        return _require(
            number, isinstance(number, int) and not isinstance(number, bool), "a whole number", where
        )
    if base is float:
        return _number(raw, where)
    if base is Path:
        return Path(_plain_text(_require(raw, isinstance(raw, str | Path), "a path", where), where))
    quotes = "text in quotes" if isinstance(raw, int | float) else "text"  # YAML reads 24:00:00 as a number
    return _plain_text(_require(raw, isinstance(raw, str), quotes, where), where)


def _plain_text(raw: str | Path, where: str) -> Any:
    # An empty path would mean the working directory; most often a shell variable was not set.
    if raw == "":
        raise InputError(f"{where} is empty; give it a value or remove it.")
    return _require(raw, "\0" not in str(raw), "without NUL characters", where)


def _number(raw: Any, where: str) -> float:
    # YAML 1.1 reads 1e-3 (no dot) as text, and every experiment file has such learning rates.
    try:
        value = float(raw) if not isinstance(raw, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        value = float("nan")
    return float(_require(value, math.isfinite(value), "a number", where, raw))


def _require(value: Any, good: bool, kind: str, where: str, raw: Any = None) -> Any:
    if not good:
        raise InputError(f"{where} must be {kind}, not {value if raw is None else raw!r}.")
    return value


def _check_bounds(value: Any, info: FieldInfo, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if info.minimum is not None and value < info.minimum:
        raise InputError(f"{where} is {value:g}; it must be at least {info.minimum:g}.")
    if info.above is not None and value <= info.above:
        raise InputError(f"{where} is {value:g}; it must be greater than {info.above:g}.")
    if info.maximum is not None and value > info.maximum:
        raise InputError(f"{where} is {value:g}; it must be at most {info.maximum:g}.")
