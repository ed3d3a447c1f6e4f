"""Bytes to records and back: single-object encoding, Confluent framing, and evolution by schema resolution.

    frame      C3 01 | 8-byte little-endian fingerprint | Avro body        (the default)
               00    | 4-byte big-endian registry id    | Avro body        (where a registry is configured)

A reader takes both. The writer's schema is found by fingerprint among the committed versions in `history/`, or by id
in the registry, and resolved against the reader's; enum symbols and fields that the reader does not know fall to
their defaults.
"""

from __future__ import annotations

import functools
import io
import json
import struct
from collections.abc import Sequence
from importlib import resources
from typing import Any, Generic, Protocol, TypeVar, cast

import fastavro

from penstock.schemas.errors import InvalidRecord, MalformedRecord, OversizedRecord, UnknownSchema
from penstock.schemas.nesting import MAX_NESTING, bounded, too_deep
from penstock.schemas.records import avro_schema, from_plain, per_class, to_avro, unknown_symbols

R = TypeVar("R")

SINGLE_OBJECT_MARK = b"\xc3\x01"
CONFLUENT_MARK = b"\x00"
MAX_RECORD_BYTES = 1 << 20  # Kafka's own default for a message (message.max.bytes)

Schema = dict[str, Any]


class Registry(Protocol):
    """What framing needs of a Confluent-compatible schema registry (`registry.py` has the client)."""

    def schema_by_id(self, schema_id: int) -> Schema: ...

    def id_of(self, subject: str, schema: Schema) -> int: ...


def fingerprint(schema: Schema) -> bytes:
    """CRC-64-AVRO of the schema's parsing canonical form, as it stands in a single-object header (8 bytes)."""
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    return bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))


class Codec(Generic[R]):
    """Encodes and decodes one kind of record. Stateless but for caches; safe to share between threads."""

    def __init__(self, record: type[R], *, registry: Registry | None = None, subject: str | None = None) -> None:
        self.record = record
        self._registry = registry
        self._subject = subject or record.__name__
        self._schema = _parsed(avro_schema(record, logical_types=False))
        self._fingerprint = fingerprint(avro_schema(record))
        self._header: bytes | None = None
        self._writers: dict[bytes, Schema] = {self._fingerprint: self._schema}

    def encode(self, value: R) -> bytes:
        """One framed record. Raises InvalidRecord when a field has the wrong type, OversizedRecord past 1 MiB."""
        data = self.encode_unbounded(value)
        if len(data) > MAX_RECORD_BYTES:
            raise OversizedRecord(
                f"{self.record.__name__}: {len(data)} bytes encoded, at most {MAX_RECORD_BYTES} allowed"
            )
        return data

    def encode_unbounded(self, value: R, *, without: Sequence[str] = ()) -> bytes:
        """The same without the bound of a Kafka message: calls between roles have their own.

        `without`: fields that may be null and are left out.
        """
        try:
            plain = to_avro(value)
            for field in without:
                plain[field] = None
            return self.encode_plain(plain)
        except (ValueError, TypeError, AttributeError, struct.error, OverflowError) as error:
            raise InvalidRecord(self.record.__name__, value, f"values of the schema's types ({error})") from error

    def encode_plain(self, plain: dict[str, Any]) -> bytes:
        """One framed record from its plain values (`records.to_avro`), unbounded. Raises what fastavro raises."""
        out = io.BytesIO()
        out.write(self._frame())
        fastavro.schemaless_writer(out, self._schema, plain)
        return out.getvalue()

    def decode(self, data: bytes) -> R:
        """The record in `data`, resolved to this reader's schema.

        Raises MalformedRecord, UnknownSchema or OversizedRecord; nothing else escapes.
        """
        if len(data) > MAX_RECORD_BYTES:
            raise OversizedRecord(f"{len(data)} bytes, at most {MAX_RECORD_BYTES} allowed; split or shorten the record")
        return self.decode_unbounded(data)

    def unknown_symbols(self, data: bytes) -> list[tuple[str, str]]:
        """(dotted field, symbol) of what a newer writer said in an enum and this reader read as UNKNOWN.

        For a record that `decode` has accepted; costs nothing when the writer's schema is the reader's own.
        """
        writer, start = self._writer_of(data)
        if writer is self._schema:
            return []
        body = io.BytesIO(data)
        body.seek(start)
        plain = fastavro.schemaless_reader(body, writer, None, return_record_name=False)
        return list(unknown_symbols(self.record, cast(dict[str, Any], plain)))

    def decode_unbounded(self, data: bytes) -> R:
        """The same without the bound of a Kafka message."""
        writer, start = self._writer_of(data)
        body = io.BytesIO(data)
        body.seek(start)
        try:
            plain = fastavro.schemaless_reader(
                body, writer, None if writer is self._schema else self._schema, return_record_name=False
            )
            value = from_plain(self.record, plain)  # type: ignore[arg-type]
        except Exception as error:  # fastavro raises whatever the garbage leads it to
            if too_deep(error):
                raise MalformedRecord(
                    f"a {self.record.__name__} with something inside itself more than {MAX_NESTING} levels deep: "
                    "flatten it"
                ) from error
            raise MalformedRecord(
                f"not a {self.record.__name__} although framed as one: {type(error).__name__}: {error}"
            ) from error
        if body.tell() != len(data):
            raise MalformedRecord(
                f"{len(data) - body.tell()} bytes left over after a whole {self.record.__name__}: "
                "publish one record a message"
            )
        return value

    def _frame(self) -> bytes:
        if self._header is None:
            if self._registry is None:
                self._header = SINGLE_OBJECT_MARK + self._fingerprint
            else:
                schema_id = self._registry.id_of(self._subject, avro_schema(self.record))
                self._header = CONFLUENT_MARK + struct.pack(">I", schema_id)
        return self._header

    def _writer_of(self, data: bytes) -> tuple[Schema, int]:
        """(the schema `data` was written with, where its body starts)."""
        if data[:2] == SINGLE_OBJECT_MARK:
            if len(data) < 10:
                raise MalformedRecord(f"cut short: {len(data)} bytes, a single-object header alone has 10")
            return self._known(data[2:10]), 10
        if data[:1] == CONFLUENT_MARK and len(data) >= 5:
            if self._registry is None:
                raise UnknownSchema(
                    "Confluent framing (00 + schema id), but no schema registry is configured here: "
                    "set kafka.schema_registry (a table with url), or publish with single-object encoding"
                )
            return self._registered(data[1:5]), 5
        raise MalformedRecord(
            f"starts with {data[:4].hex(' ') or 'nothing'}; expected C3 01 (Avro single-object encoding) or "
            "00 (Confluent framing)"
        )

    def _known(self, mark: bytes) -> Schema:
        writer = self._writers.get(mark)
        if writer is None:
            committed = history(self.record.__name__).get(mark)
            if committed is None:
                raise UnknownSchema(
                    f"no version of {self.record.__name__} has fingerprint {mark.hex()}: "
                    "upgrade this reader, or publish with a schema from schemas/history"
                )
            writer = self._writers[mark] = _parsed(_plain_timestamps(committed))
        return writer

    def _registered(self, mark: bytes) -> Schema:
        writer = self._writers.get(mark)
        if writer is None:
            assert self._registry is not None
            found = self._registry.schema_by_id(struct.unpack(">I", mark)[0])
            writer = self._writers[mark] = _parsed(_plain_timestamps(found))
        return writer


def codec(record: type[R]) -> Codec[R]:
    """The shared codec of a record, single-object framing."""
    return cast(Codec[R], _codec(record))


@per_class
def _codec(record: type) -> Codec[Any]:
    return Codec(record)


@functools.cache
def history(record_name: str) -> dict[bytes, Schema]:
    """Every committed version of a record's schema, by fingerprint."""
    folder = resources.files("penstock.schemas") / "history" / record_name
    if not folder.is_dir():
        return {}
    versions = sorted((f for f in folder.iterdir() if f.name.endswith(".avsc")), key=lambda f: f.name)
    schemas = [json.loads(f.read_text(encoding="utf-8")) for f in versions]
    return {fingerprint(schema): schema for schema in schemas}


def _parsed(schema: Schema) -> Schema:
    return cast(Schema, fastavro.parse_schema(bounded(schema)))


def _plain_timestamps(schema: Any) -> Any:
    """The schema without logical types, so that timestamps decode to ints."""
    if isinstance(schema, dict):
        return {key: _plain_timestamps(value) for key, value in schema.items() if key != "logicalType"}
    if isinstance(schema, list):
        return [_plain_timestamps(item) for item in schema]
    return schema
