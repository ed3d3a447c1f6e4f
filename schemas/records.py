"""Typed records and their codecs: a frozen dataclass in, an Avro schema and plain values out.

The dataclasses in `events.py` and `rpc.py` are the single source. From their type hints this module derives the
Avro schema (written to `avro/*.avsc` by `python -m penstock.schemas.build`) and the functions between a record
and the plain dicts that fastavro and JSON work with. Invariant: a record's fields, in order, are its schema's fields.

Types: str, int (Avro long), float (double), bool, bytes, `Millis` (timestamp-millis), `Symbol` enums, nested
records, `X | None`, `tuple[X, ...]` (array), `Mapping[str, X]` (map). A trailing underscore keeps a Python keyword
out of the way and is not part of the wire name (`class_` is `class`).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, TypeVar

NAMESPACE = "io.penstock"

R = TypeVar("R")
T = TypeVar("T")
Converter = Callable[[Any], Any]


class TimestampMillis:
    """Marks an int as epoch milliseconds."""


Millis = Annotated[int, TimestampMillis()]


class Symbol(StrEnum):
    """Base of every enum on the wire. Each one declares UNKNOWN, which an unknown symbol becomes."""


def wire_name(attribute: str) -> str:
    """The field's name on the wire: a trailing underscore only keeps a Python keyword away."""
    return attribute.rstrip("_")


def per_class(make: Callable[[type], T]) -> Callable[[type], T]:
    """Makes once for each class and remembers. (functools.cache wants Hashable, which a class is not to mypy.)"""
    made: dict[type, T] = {}

    @functools.wraps(make)
    def get(record: type) -> T:
        found = made.get(record)
        if found is None:
            found = made[record] = make(record)
        return found

    return get


@dataclasses.dataclass(frozen=True, slots=True)
class RecordField:
    """One field of a record, resolved from its type hint."""

    attribute: str
    name: str
    hint: Any  # the type without Annotated and without None
    optional: bool
    doc: str | None
    millis: bool
    default: Any  # dataclasses.MISSING when the field is required


@per_class
def fields_of(record: type) -> tuple[RecordField, ...]:
    """The fields of a record class, in wire order."""
    hints = typing.get_type_hints(record, include_extras=True)
    out = []
    for field in dataclasses.fields(record):
        hint, doc, millis = _strip(hints[field.name])
        optional = False
        if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
            arms = [arm for arm in typing.get_args(hint) if arm is not type(None)]
            if len(arms) != 1:
                raise TypeError(f"{record.__name__}.{field.name}: only `X | None` unions are on the wire")
            hint, inner_doc, inner_millis = _strip(arms[0])
            doc, millis, optional = doc or inner_doc, millis or inner_millis, True
        out.append(RecordField(field.name, wire_name(field.name), hint, optional, doc, millis, field.default))
    return tuple(out)


def _strip(hint: Any) -> tuple[Any, str | None, bool]:
    """(bare type, doc, is a timestamp) of a possibly nested Annotated hint."""
    doc, millis = None, False
    while typing.get_origin(hint) is Annotated:
        hint, *extras = typing.get_args(hint)
        for extra in extras:
            if isinstance(extra, str):
                doc = extra
            elif isinstance(extra, TimestampMillis):
                millis = True
    return hint, doc, millis


# --- Avro schema -----------------------------------------------------------------------------------------------


def avro_schema(record: type, *, logical_types: bool = True) -> dict[str, Any]:
    """The Avro schema of a record class.

    `logical_types=False` leaves timestamps plain longs, which is what the codecs parse with: fastavro would
    otherwise turn each into a datetime. The fingerprint is the same, since the canonical form has no logical types.
    """
    return _record_schema(record, set(), logical_types)


def _record_schema(record: type, seen: set[type], logical_types: bool) -> dict[str, Any]:
    seen.add(record)
    schema: dict[str, Any] = {"type": "record", "name": record.__name__, "namespace": NAMESPACE}
    if record.__doc__:
        schema["doc"] = " ".join(record.__doc__.split())
    schema["fields"] = [_field_schema(field, seen, logical_types) for field in fields_of(record)]
    return schema


def _field_schema(field: RecordField, seen: set[type], logical_types: bool) -> dict[str, Any]:
    kind = _type_schema(field.hint, field.millis and logical_types, seen, logical_types)
    out: dict[str, Any] = {"name": field.name, "type": ["null", kind] if field.optional else kind}
    if field.doc:
        out["doc"] = field.doc
    if field.optional:
        out["default"] = None
    elif field.default is not dataclasses.MISSING:
        out["default"] = _plain_default(field.default)
    elif typing.get_origin(field.hint) is tuple:
        out["default"] = []
    elif typing.get_origin(field.hint) is collections.abc.Mapping:
        out["default"] = {}
    return out


def _plain_default(value: Any) -> Any:
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple):
        return list(value)
    if dataclasses.is_dataclass(value):
        return {name: _plain_default(item) for name, item in to_plain(value).items()}
    return dict(value) if isinstance(value, Mapping) else value


_PRIMITIVES: dict[type, str] = {str: "string", int: "long", float: "double", bool: "boolean", bytes: "bytes"}


def _type_schema(hint: Any, millis: bool, seen: set[type], logical_types: bool) -> Any:
    if millis:
        return {"type": "long", "logicalType": "timestamp-millis"}
    if hint in _PRIMITIVES:
        return _PRIMITIVES[hint]
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner, _, inner_millis = _strip(typing.get_args(hint)[0])
        return {"type": "array", "items": _type_schema(inner, inner_millis, seen, logical_types)}
    if origin is collections.abc.Mapping:
        inner, _, _ = _strip(typing.get_args(hint)[1])
        return {"type": "map", "values": _type_schema(inner, False, seen, logical_types)}
    if not isinstance(hint, type):
        raise TypeError(f"no Avro type for {hint!r}")
    if hint in seen:
        return f"{NAMESPACE}.{hint.__name__}"
    if issubclass(hint, StrEnum):
        seen.add(hint)
        return {
            "type": "enum",
            "name": hint.__name__,
            "namespace": NAMESPACE,
            "symbols": [member.value for member in hint],
            "default": "UNKNOWN",
        }
    return _record_schema(hint, seen, logical_types)


# --- records <-> plain values ----------------------------------------------------------------------------------


def to_plain(record: Any) -> dict[str, Any]:
    """A record as the dict that fastavro writes: nested records are dicts, everything else stays as it is."""
    plain: dict[str, Any] = _dumper(type(record))(record)
    return plain


def to_avro(record: Any) -> dict[str, Any]:
    """The same, but a nested record that may be null goes with its schema's name: fastavro need not look which branch
    of the union fits, which takes longer than writing it."""
    plain: dict[str, Any] = _dumper(type(record), named=True)(record)
    return plain


def from_plain(record: type[R], plain: Mapping[str, Any]) -> R:
    """The record of a decoded dict (as fastavro reads it). No validation: the Avro schema has vouched for the types."""
    loaded: R = _loader(record)(plain)
    return loaded


def _dumper(record: type, *, named: bool = False) -> Converter:
    dumper: Converter = (_named_dumper if named else _plain_dumper)(record)
    return dumper


@per_class
def _plain_dumper(record: type) -> Converter:
    return _dump_all([(f.attribute, f.name, _dump_value(f.hint, named=False)) for f in fields_of(record)])


@per_class
def _named_dumper(record: type) -> Converter:
    plan = []
    for f in fields_of(record):
        convert = _dump_value(f.hint, named=True)
        if convert is not None and f.optional and _is_record(f.hint):
            convert = _with_name(f"{NAMESPACE}.{f.hint.__name__}", convert)
        plan.append((f.attribute, f.name, convert))
    return _dump_all(plan)


def _with_name(name: str, convert: Converter) -> Converter:
    return lambda value: (name, convert(value))


def _is_record(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _dump_all(plan: Sequence[tuple[str, str, Converter | None]]) -> Converter:
    def dump(value: Any) -> dict[str, Any]:
        out = {}
        for attribute, name, convert in plan:
            item = getattr(value, attribute)
            out[name] = item if convert is None or item is None else convert(item)
        return out

    return dump


def _dump_value(hint: Any, *, named: bool) -> Converter | None:
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = _dump_value(_strip(typing.get_args(hint)[0])[0], named=named)
        return list if inner is None else lambda items: [inner(item) for item in items]
    if origin is collections.abc.Mapping:
        return dict
    if _is_record(hint):
        return lambda value: _dumper(hint, named=named)(value)  # resolved late: records may contain themselves
    return None


@per_class
def _loader(record: type) -> Converter:
    plan = [(f.attribute, f.name, _load_value(f.hint)) for f in fields_of(record)]

    def load(plain: Mapping[str, Any]) -> Any:
        arguments = {}
        for attribute, name, convert in plan:
            item = plain[name]
            arguments[attribute] = item if convert is None or item is None else convert(item)
        return record(**arguments)

    return load


def unknown_symbols(record: type, plain: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """(dotted field, symbol) of every enum value in a dict that the record's enums do not know."""
    for field in fields_of(record):
        value, where = plain.get(field.name), f"{path}{field.name}"
        if value is not None:
            yield from _unknown_in(field.hint, value, where)


def _unknown_in(hint: Any, value: Any, where: str) -> Iterator[tuple[str, str]]:
    if typing.get_origin(hint) is tuple:
        inner = _strip(typing.get_args(hint)[0])[0]
        for position, item in enumerate(value):
            yield from _unknown_in(inner, item, f"{where}[{position}]")
    elif isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield from unknown_symbols(hint, value, f"{where}.")
    elif isinstance(hint, type) and issubclass(hint, StrEnum) and value not in hint.__members__:
        yield where, value


def _load_value(hint: Any) -> Converter | None:
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = _load_value(_strip(typing.get_args(hint)[0])[0])
        return tuple if inner is None else lambda items: tuple(inner(item) for item in items)
    if origin is collections.abc.Mapping:
        return None
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return hint
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return lambda value: _loader(hint)(value)
    return None
