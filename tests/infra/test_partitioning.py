"""A key has one partition, whoever sends it: our producers choose as Kafka's Java producers do.

The expected hashes are the ones that Kafka's own tests of `Utils.murmur2` hold; librdkafka's in-process mock broker
takes the records, so that what is asked is where they went.
"""

import pytest

from penstock.infra.kafka_clients import Publisher
from penstock.infra.settings import KafkaSettings
from penstock.retrieval.dead_letters import DeadLetters
from penstock.schemas import topics
from penstock.schemas.kafka import KafkaSink

MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
PARTITIONS = 4  # of a topic that the mock broker makes


def settings(**client):
    return KafkaSettings(client={"test.mock.num.brokers": "1", "log_level": "2", **client})


def publisher(kafka):
    return Publisher(kafka)._producer


def sink(kafka):
    return KafkaSink(kafka)._producer


def dead_letters(kafka):
    return DeadLetters(kafka, topics.INDEX)._producer


def partitions_of(producer, keys):
    found = {}

    def delivered(error, message):
        assert error is None, error
        found[message.key()] = message.partition()

    for key in keys:
        producer.produce("t", b"v", key, on_delivery=delivered)
    assert producer.flush(20) == 0
    return found


@pytest.mark.parametrize("make", [publisher, sink, dead_letters])
def test_keys_go_where_java_producers_send_them(make):
    expected = {key: (hashed & 0x7FFFFFFF) % PARTITIONS for key, hashed in MURMUR2.items()}
    assert partitions_of(make(settings()), MURMUR2) == expected


@pytest.mark.parametrize("make", [publisher, sink, dead_letters])
def test_settings_may_choose_otherwise(make):
    elsewhere = partitions_of(make(settings(partitioner="consistent_random")), MURMUR2)
    assert elsewhere != {key: (hashed & 0x7FFFFFFF) % PARTITIONS for key, hashed in MURMUR2.items()}
