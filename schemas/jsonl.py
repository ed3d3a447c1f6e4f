"""JSON in and out with the wire's field names: one record a line.

Reading is strict where a mistake would be silent: an unknown field, a wrong type or a missing required field is an
InvalidRecord naming the field. An unknown enum symbol becomes UNKNOWN and is counted by the caller's `on_unknown`.
Times may be epoch milliseconds or ISO 8601 with an offset; bytes are base64.
"""

from __future__ import annotations

import base64
import binascii
import collections.abc
import dataclasses
import json
import typing
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from penstock.schemas.errors import InvalidRecord, MalformedRecord
from penstock.schemas.records import RecordField, fields_of
from penstock.schemas.times import parse_time

R = TypeVar("R")
OnUnknown = Callable[[str, str], None]  # (dotted field, the symbol given)

MAX_LINE_BYTES = 4 << 20  # JSON is wordier than Avro; the record's own bound is checked when it is encoded


def _ignore(field: str, symbol: str) -> None:
    """The default `on_unknown`: nobody counts."""


def dumps(record: Any) -> str:
    """One line of JSON; fields at their null or empty default are left out."""
    return json.dumps(to_json(record), ensure_ascii=False, separators=(",", ":"))


def to_json(record: Any) -> dict[str, Any]:
    """A record as plain JSON values."""
    out: dict[str, Any] = {}
    for field in fields_of(type(record)):
        value = getattr(record, field.attribute)
        if value is None or (value == () and field.default == ()):
            continue
        out[field.name] = _value_to_json(value)
    return out


def _value_to_json(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if dataclasses.is_dataclass(value):
        return to_json(value)
    if isinstance(value, tuple):
        return [_value_to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _value_to_json(item) for key, item in value.items()}
    return value


def loads(record: type[R], line: str | bytes, on_unknown: OnUnknown = _ignore) -> R:
    """The record in one line of JSON. Raises MalformedRecord (not JSON) or InvalidRecord (naming the field)."""
    try:
        given = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedRecord(f"not JSON: {error}") from error
    return from_json(record, given, on_unknown)


def from_json(record: type[R], given: Any, on_unknown: OnUnknown = _ignore, path: str = "") -> R:
    """The record of plain JSON values."""
    if not isinstance(given, dict):
        raise InvalidRecord(path or record.__name__, given, "a JSON object")
    fields = fields_of(record)
    unknown = given.keys() - {field.name for field in fields}
    if unknown:
        name = min(unknown)
        raise InvalidRecord(_join(path, name), given[name], f"one of the fields {', '.join(f.name for f in fields)}")
    arguments = {}
    for field in fields:
        where = _join(path, field.name)
        if given.get(field.name) is None:
            if field.default is dataclasses.MISSING:
                raise InvalidRecord(where, None, "a value: the field is required")
            continue
        arguments[field.attribute] = _value_from_json(field.hint, field, given[field.name], where, on_unknown)
    return record(**arguments)


def _value_from_json(hint: Any, field: RecordField, given: Any, where: str, on_unknown: OnUnknown) -> Any:
    if field.millis:
        return parse_time(where, given)
    origin = typing.get_origin(hint)
    if origin is tuple:
        if not isinstance(given, list):
            raise InvalidRecord(where, given, "a list")
        inner = typing.get_args(hint)[0]
        plain = dataclasses.replace(field, millis=False)
        return tuple(_value_from_json(inner, plain, v, f"{where}[{i}]", on_unknown) for i, v in enumerate(given))
    if origin is collections.abc.Mapping:
        if not isinstance(given, dict):
            raise InvalidRecord(where, given, "an object")
        inner = typing.get_args(hint)[1]
        return {k: _value_from_json(inner, field, v, f"{where}.{k}", on_unknown) for k, v in given.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), given, on_unknown, where)
    return _scalar(hint, given, where, on_unknown)


def _scalar(hint: type, given: Any, where: str, on_unknown: OnUnknown) -> Any:
    if issubclass(hint, StrEnum):
        if not isinstance(given, str):
            raise InvalidRecord(where, given, f"one of {', '.join(member.value for member in hint)}")
        if given not in hint.__members__:
            on_unknown(where, given)
            return hint("UNKNOWN")
        return hint(given)
    if hint is bool and isinstance(given, bool):
        return given
    if hint is int and isinstance(given, int) and not isinstance(given, bool):
        if not -(2**63) <= given < 2**63:
            raise InvalidRecord(where, given, "a 64-bit integer")
        return given
    if hint is float and isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given)
    if hint is str and isinstance(given, str):
        try:
            given.encode("utf-8")
        except UnicodeEncodeError:
            raise InvalidRecord(where, given, "text without lone surrogates") from None
        return given
    if hint is bytes and isinstance(given, str):
        try:
            return base64.b64decode(given, validate=True)
        except binascii.Error:
            raise InvalidRecord(where, given, "base64") from None
    names = {str: "text", int: "an integer", float: "a number", bool: "true or false", bytes: "base64 text"}
    raise InvalidRecord(where, given, names.get(hint, hint.__name__))


def read_file(
    record: type[R], path: Path, on_unknown: OnUnknown = _ignore
) -> Iterator[tuple[int, R | MalformedRecord | InvalidRecord]]:
    """(line number, record or what is wrong with the line) for every non-empty line of a JSON Lines file."""
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(MAX_LINE_BYTES)
                yield number, MalformedRecord(f"line longer than {MAX_LINE_BYTES} bytes")
                continue
            if not line.strip():
                continue
            try:
                yield number, loads(record, line, on_unknown)
            except (MalformedRecord, InvalidRecord) as error:
                yield number, error


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
