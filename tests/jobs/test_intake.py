"""From raw bytes to a checked event or a dead letter with the same bytes."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.infra.settings import KafkaSettings, Settings, SettingsError
from penstock.jobs.operators import kafka
from penstock.jobs.operators.intake import check_enriched, check_posting, check_query, dead_letter_row, take
from penstock.jobs.operators.kafka import java_properties
from penstock.schemas.events import (
    DeadLetter,
    EnrichedPosting,
    Enrichment,
    Filter,
    FilterKind,
    Op,
    Posting,
    SearchQuery,
    Vector,
)
from penstock.schemas.filters import is_in
from penstock.schemas.topics import ENRICHED, POSTINGS, QUERIES
from penstock.schemas.wire import codec

NOW = 1_763_718_000_000
SETTINGS = Settings()
GOOD = Posting(posting_id="p", version=1, title="Nurse", description="Cares.")


def take_posting(raw: bytes, produced_at: int | None = NOW):
    return take(POSTINGS, codec(Posting), check_posting, raw, produced_at, NOW, SETTINGS)


def test_a_good_posting_goes_on_with_its_hashes():
    arrival, letter = take_posting(codec(Posting).encode(GOOD))
    assert letter is None
    assert arrival.posting == GOOD
    assert arrival.produced_at == NOW
    assert arrival.text.title == "Nurse"
    gone, _ = take_posting(codec(Posting).encode(Posting(posting_id="p", version=2, op=Op.DELETE)))
    assert (gone.text, gone.text_hash) == (None, None)


@given(st.binary(max_size=300))
def test_any_bytes_become_a_dead_letter_with_the_same_bytes(raw):
    arrival, letter = take_posting(raw)
    assert arrival is None
    row = dead_letter_row(letter)
    read = codec(DeadLetter).decode(row[1])
    assert (read.raw, read.topic, read.stage) == (raw, POSTINGS.name, "decode")
    assert read.message
    assert (read.produced_at, read.failed_at, read.attempt) == (NOW, NOW, 1)


@pytest.mark.parametrize(
    ("posting", "stage", "field"),
    [
        (Posting(posting_id="p", version=1), "validate", "title"),
        (Posting(posting_id="p", version=-1, op=Op.DELETE), "validate", "version"),
    ],
)
def test_a_broken_rule_names_stage_field_and_key(posting, stage, field):
    _, letter = take_posting(codec(Posting).encode(posting))
    assert (letter.stage, letter.key) == (stage, b"p")
    assert letter.message.startswith(field)
    assert letter.error_class == "InvalidRecord"


def test_an_event_from_before_the_tombstone_window_is_refused():
    window = SETTINGS.postings.tombstone_window_ms
    raw = codec(Posting).encode(GOOD)
    assert take_posting(raw, NOW - window)[1] is None
    _, letter = take_posting(raw, NOW - window - 1)
    assert letter.stage == "order"
    assert "tombstone_window" in letter.message


def test_without_a_kafka_timestamp_the_moment_of_reading_counts():
    arrival, _ = take_posting(codec(Posting).encode(GOOD), None)
    assert arrival.produced_at == NOW


def test_a_dead_letter_of_the_largest_record_still_fits():
    raw = b"\xc3\x01" + b"x" * ((1 << 20) + 10)
    _, letter = take_posting(raw)
    assert letter.error_class == "OversizedRecord"
    assert codec(DeadLetter).decode_unbounded(dead_letter_row(letter)[1]).raw == raw


def test_a_record_larger_than_any_dead_letter_is_named_without_its_bytes():
    _, letter = take_posting(b"\xc3\x01" + b"x" * (5 << 20))
    read = codec(DeadLetter).decode(dead_letter_row(letter)[1])
    assert read.raw == b""
    assert "5242882 bytes" in read.message


def test_queries_and_answers():
    query = SearchQuery(request_id="q", text="nurse")
    value, _ = take(QUERIES, codec(SearchQuery), check_query, codec(SearchQuery).encode(query), NOW, NOW, SETTINGS)
    assert value == (query, NOW)
    empty = EnrichedPosting(posting_id="p", version=1, text_hash="h", enrichment=Enrichment())
    raw = codec(EnrichedPosting).encode(empty)
    _, letter = take(ENRICHED, codec(EnrichedPosting), check_enriched, raw, NOW, NOW, SETTINGS)
    assert letter.stage == "validate"


@pytest.mark.parametrize(
    "enrichment",
    [
        Enrichment(summary="x" * 70_000),
        Enrichment(summary="x", item_text="y" * 70_000),
        Enrichment(vector=Vector(space_id="s", encoder_id="e", dense=b"ab" * 40_000)),
        Enrichment(vector=Vector(space_id="s", encoder_id="e", dense=b"ab", sketch=b"a" * 70_000)),
    ],
)
def test_an_answer_that_no_index_update_could_hold_is_refused(enrichment):
    event = EnrichedPosting(posting_id="p", version=1, text_hash="h", enrichment=enrichment)
    raw = codec(EnrichedPosting).encode(event)
    _, letter = take(ENRICHED, codec(EnrichedPosting), check_enriched, raw, NOW, NOW, SETTINGS)
    assert (letter.stage, letter.raw) == ("validate", raw)


def test_what_becomes_part_of_a_larger_record_is_small_enough_for_it():
    _, letter = take_posting(codec(Posting).encode(replace(GOOD, trace="0" * 900_000)))
    assert letter.message.startswith("trace")
    wide = SearchQuery(request_id="q", text="nurse", filters=is_in("company", *["x" * 1000] * 900))
    _, letter = take(QUERIES, codec(SearchQuery), check_query, codec(SearchQuery).encode(wide), NOW, NOW, SETTINGS)
    assert letter.error_class == "OversizedRecord"


def test_a_filter_nested_without_end_is_a_dead_letter():
    leaf = Filter(kind=FilterKind.IN, field="remote", values=("REMOTE",))
    before, inner, after = (
        codec(SearchQuery)
        .encode(SearchQuery(request_id="q", text="x", filters=leaf))
        .partition(codec(Filter).encode(leaf)[10:])
    )
    opened, closed = bytes([6, 2]), bytes([0] * 8 + [2])
    raw = before + opened * 50_000 + inner + closed * 50_000 + after
    _, letter = take(QUERIES, codec(SearchQuery), check_query, raw, NOW, NOW, SETTINGS)
    assert (letter.stage, letter.error_class, letter.raw) == ("decode", "MalformedRecord", raw)


def test_a_bug_of_ours_is_not_the_record_s_fault():
    def broken(*_):
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError):
        take(POSTINGS, codec(Posting), broken, codec(Posting).encode(GOOD), NOW, NOW, SETTINGS)


def test_client_properties_become_java_s():
    given_properties = KafkaSettings(
        client={"security.protocol": "SASL_SSL", "sasl.mechanisms": "SCRAM-SHA-512", "ssl.ca.location": "/ca.pem"},
        secrets={"sasl.username": "me", "sasl.password": 'a"b'},
    )
    java = java_properties(given_properties)
    assert java["sasl.mechanism"] == "SCRAM-SHA-512"
    assert (java["ssl.truststore.location"], java["ssl.truststore.type"]) == ("/ca.pem", "PEM")
    assert 'ScramLoginModule required username="me" password="a\\"b";' in java["sasl.jaas.config"]
    assert not {"sasl.username", "bootstrap.servers"} & java.keys()
    with pytest.raises(SettingsError, match=r"ssl\.key\.location"):
        java_properties(KafkaSettings(client={"ssl.key.location": "/key.pem"}))


@pytest.mark.parametrize(
    "name",
    ["enable.ssl.certificate.verification", "socket.keepalive.enable", "ssl.truststore.location", "group.id", "acks"],
)
def test_a_client_property_that_java_does_not_share_is_refused_by_name(name):
    with pytest.raises(SettingsError, match=re.escape(name)):
        java_properties(KafkaSettings(client={"client.id": "mine", name: "1"}))
    with pytest.raises(SettingsError, match=re.escape(name)):
        java_properties(KafkaSettings(secrets={name: "1"}))


def test_librdkafka_knows_every_property_that_is_passed_on():
    from confluent_kafka import KafkaException, Producer

    for name in kafka._SHARED | kafka._JAVA_NAMES.keys():
        try:  # none of these values is right for all, so that only the name decides
            Producer({name: "1"})
        except KafkaException as error:
            assert "No such configuration property" not in str(error), name


def test_java_s_own_table_has_the_last_word():
    store = {"ssl.keystore.location": "/me.p12", "ssl.keystore.type": "PKCS12", "ssl.keystore.password": "hush"}
    mutual = {"ssl.certificate.location": "/me.pem", "ssl.key.location": "/me.key", "ssl.ca.location": "/ca.pem"}
    java = java_properties(KafkaSettings(client={**mutual, "retries": "7"}, java={**store, "retries": "9"}))
    assert java == store | {"ssl.truststore.location": "/ca.pem", "ssl.truststore.type": "PEM", "retries": "9"}
    with pytest.raises(SettingsError, match=r"ssl\.key\.location"):
        java_properties(KafkaSettings(client=mutual, java={"ssl.truststore.location": "/ca.p12"}))
    with pytest.raises(SettingsError, match=r"kafka\.java: .*group\.id"):
        java_properties(KafkaSettings(java={"group.id": "other"}))


def test_values_that_java_spells_otherwise_are_translated():
    client = {"ssl.keystore.location": "/me.p12", "ssl.endpoint.identification.algorithm": "none"}
    java = java_properties(KafkaSettings(client=client))
    assert (java["ssl.keystore.type"], java["ssl.endpoint.identification.algorithm"]) == ("PKCS12", "")
