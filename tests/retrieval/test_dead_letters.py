"""Retrieval's dead letters as they stand on their topic: librdkafka's in-process mock broker takes and gives them."""

import time

from confluent_kafka import Consumer, TopicPartition

from penstock.infra.settings import KafkaSettings
from penstock.retrieval.dead_letters import DeadLetters
from penstock.retrieval.feed import Record
from penstock.schemas import topics
from penstock.schemas.errors import MalformedRecord
from penstock.schemas.events import DeadLetter
from penstock.schemas.wire import codec


def test_a_letter_needs_no_registry_to_be_written_or_read():
    letters = DeadLetters(
        KafkaSettings(
            client={"test.mock.num.brokers": "1", "log_level": "2"},
            schema_registry={"url": "http://127.0.0.1:1"},  # nobody is there, and nobody is asked
        ),
        topics.INDEX,
    )
    letters.send(Record(0, 7, 123, b"k", b"poison"), MalformedRecord("not a record"), 456)
    assert letters.close(20) == 0
    broker = next(iter(letters._producer.list_topics(timeout=5).brokers.values()))
    reader = Consumer({"bootstrap.servers": f"{broker.host}:{broker.port}", "group.id": "g", "log_level": 2})
    topic = topics.INDEX.dead_letters
    reader.assign([TopicPartition(topic, partition, 0) for partition in range(4)])
    message, give_up = None, time.monotonic() + 20
    while message is None or message.error() is not None:
        assert time.monotonic() < give_up
        message = reader.poll(0.2)
    reader.close()
    letter = codec(DeadLetter).decode(message.value())
    assert (letter.topic, letter.key, letter.raw, letter.stage) == ("index.update.v1", b"k", b"poison", "index")
    assert (letter.error_class, letter.produced_at, letter.failed_at) == ("MalformedRecord", 123, 456)
