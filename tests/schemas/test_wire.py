"""Framing and evolution on real bytes: round trips, every way of being broken, older and newer writers."""

import io
import json
import struct
from dataclasses import dataclass

import fastavro
import pytest
from any_record import any_record
from hypothesis import given
from hypothesis import strategies as st

from penstock.schemas import build, events, wire
from penstock.schemas.errors import InvalidRecord, MalformedRecord, OversizedRecord, UnknownSchema
from penstock.schemas.events import Location, Posting, Salary
from penstock.schemas.records import avro_schema, to_plain

POSTING = Posting(posting_id="p1", version=3, title="Nurse", description="Cares.", skills=("care",), posted_at=5)


@pytest.mark.parametrize("record", build.EVENTS + build.STATES + build.CALLS, ids=lambda r: r.__name__)
@given(data=st.data())
def test_every_record_survives_its_bytes(record, data):
    value = data.draw(any_record(record))
    codec = wire.codec(record)
    assert codec.decode_unbounded(codec.encode_unbounded(value)) == value


def test_single_object_framing_is_the_specification_s():
    data = wire.codec(Posting).encode(POSTING)
    assert data[:2] == b"\xc3\x01"
    canonical = fastavro.schema.to_parsing_canonical_form(avro_schema(Posting))
    assert data[2:10].hex() == fastavro.schema.fingerprint(canonical, "CRC-64-AVRO")
    body = fastavro.schemaless_reader(io.BytesIO(data[10:]), avro_schema(Posting), None)
    assert body["posting_id"] == "p1"


def test_the_known_fingerprint_of_the_avro_specification():
    # Avro 1.11, "Schema Fingerprints": CRC-64-AVRO of "int" is 7275d51a3f395c8f, stored little endian in the header.
    assert int.from_bytes(wire.fingerprint("int"), "little") == 0x7275D51A3F395C8F


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_nothing_else_escapes(garbage):
    with pytest.raises((MalformedRecord, UnknownSchema)):
        wire.codec(Posting).decode(garbage)


@given(st.integers(min_value=0, max_value=len(wire.codec(Posting).encode(POSTING)) - 1))
def test_every_truncation_is_refused(length):
    with pytest.raises((MalformedRecord, UnknownSchema)):
        wire.codec(Posting).decode(wire.codec(Posting).encode(POSTING)[:length])


def test_trailing_bytes_are_refused():
    with pytest.raises(MalformedRecord, match="3 bytes left over"):
        wire.codec(Posting).decode(wire.codec(Posting).encode(POSTING) + b"abc")


def test_an_unknown_fingerprint_names_itself():
    with pytest.raises(UnknownSchema, match="0102030405060708"):
        wire.codec(Posting).decode(b"\xc3\x01" + bytes(range(1, 9)) + b"body")


def test_oversized_records_are_refused_both_ways():
    big = Posting(posting_id="p", version=1, title="t", description="x" * wire.MAX_RECORD_BYTES)
    with pytest.raises(OversizedRecord, match="at most 1048576"):
        wire.codec(Posting).encode(big)
    with pytest.raises(OversizedRecord):
        wire.codec(Posting).decode(wire.codec(Posting).encode_unbounded(big))


def test_a_wrong_type_is_an_invalid_record():
    with pytest.raises(InvalidRecord, match="Posting"):
        wire.codec(Posting).encode(Posting(posting_id="p", version="three"))  # type: ignore[arg-type]


def _older_writer(drop: str) -> tuple[dict, bytes]:
    """A schema without one optional field, and a record written with it."""
    schema = json.loads(json.dumps(avro_schema(Posting, logical_types=False)))
    schema["fields"] = [field for field in schema["fields"] if field["name"] != drop]
    out = io.BytesIO()
    plain = to_plain(POSTING)
    plain.pop(drop)
    fastavro.schemaless_writer(out, schema, plain)
    return schema, out.getvalue()


def test_an_older_writer_is_read_with_defaults(monkeypatch):
    schema, body = _older_writer("promotion")
    mark = wire.fingerprint(schema)
    monkeypatch.setattr(wire, "history", lambda name: {mark: schema})
    assert wire.Codec(Posting).decode(b"\xc3\x01" + mark + body) == POSTING


def test_a_newer_writer_s_fields_are_skipped_and_its_symbols_become_unknown(monkeypatch):
    schema = json.loads(json.dumps(avro_schema(Posting, logical_types=False)))
    remote = next(field for field in schema["fields"] if field["name"] == "remote")
    remote["type"]["symbols"].append("ORBITAL")
    schema["fields"].append({"name": "later", "type": ["null", "string"], "default": None})
    plain = to_plain(POSTING) | {"remote": "ORBITAL", "later": "new"}
    out = io.BytesIO()
    fastavro.schemaless_writer(out, schema, plain)
    mark = wire.fingerprint(schema)
    monkeypatch.setattr(wire, "history", lambda name: {mark: schema})
    decoded = wire.Codec(Posting).decode(b"\xc3\x01" + mark + out.getvalue())
    assert decoded.remote is events.Remote.UNKNOWN
    assert decoded == POSTING
    framed = b"\xc3\x01" + mark + out.getvalue()
    assert wire.Codec(Posting).unknown_symbols(framed) == [("remote", "ORBITAL")]
    assert wire.Codec(Posting).unknown_symbols(wire.codec(Posting).encode(POSTING)) == []


@dataclass
class OneSchemaRegistry:
    """A registry that knows one schema under one id, as the framing sees it."""

    schema: dict
    schema_id: int = 42

    def schema_by_id(self, schema_id: int) -> dict:
        if schema_id != self.schema_id:
            raise UnknownSchema(f"no schema {schema_id}")
        return self.schema

    def id_of(self, subject: str, schema: dict) -> int:
        assert subject == "jobs.posting.v1-value"
        assert schema == self.schema
        return self.schema_id


def test_confluent_framing_where_a_registry_is_configured():
    registry = OneSchemaRegistry(avro_schema(Posting))
    codec = wire.Codec(Posting, registry=registry, subject="jobs.posting.v1-value")
    data = codec.encode(POSTING)
    assert data[:5] == b"\x00" + struct.pack(">I", 42)
    assert codec.decode(data) == POSTING
    assert codec.decode(wire.codec(Posting).encode(POSTING)) == POSTING, "a reader takes both framings"
    with pytest.raises(UnknownSchema, match="no schema 43"):
        codec.decode(b"\x00" + struct.pack(">I", 43) + data[5:])


def test_confluent_framing_without_a_registry_says_what_to_set():
    with pytest.raises(UnknownSchema, match="schema_registry"):
        wire.codec(Posting).decode(b"\x00\x00\x00\x00\x2a\x02\x02")


def test_nested_values_keep_their_types():
    value = Posting(
        posting_id="p", version=1, title="t", description="d",
        location=Location(country="US", lat=1.5, lon=-2.0), salary=Salary(min=10, period=events.PayPeriod.HOUR),
    )  # fmt: skip
    decoded = wire.codec(Posting).decode(wire.codec(Posting).encode(value))
    assert decoded.salary.period is events.PayPeriod.HOUR
    assert isinstance(decoded.skills, tuple)
