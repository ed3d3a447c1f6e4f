"""Following a topic: what was read is passed on, whatever else came with it."""

import pytest
from confluent_kafka import KafkaError, KafkaException

from penstock.infra.gateway.follower import Follower
from penstock.infra.settings import KafkaSettings

TOPIC = "alerts.feed.v1"


class Message:
    def __init__(self, partition, offset, error=None):
        self._place, self._error = (partition, offset), error

    def error(self):
        return self._error

    def partition(self):
        return self._place[0]

    def offset(self):
        return self._place[1]

    def timestamp(self):
        return 1, 1_795_000_000_000

    def value(self):
        return b"value"


class Sink:
    def __init__(self):
        self.taken = []

    def begin(self, starts):
        """Not looked at."""

    def take(self, records):
        self.taken += [(record.partition, record.offset) for record in records]


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture
def follower(sink):
    made = Follower(KafkaSettings(), TOPIC, lambda low, high: low, sink, lambda work: work())
    made._next = {0: 0, 1: 0}
    return made


@pytest.mark.parametrize("code", [KafkaError._TRANSPORT, KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError._FATAL])
def test_records_beside_an_error_are_not_lost(follower, sink, code):
    with pytest.raises(KafkaException):
        follower._pass_on([Message(0, 0), Message(1, None, KafkaError(code)), Message(1, 0)])
    assert sink.taken == [(0, 0), (1, 0)]
    assert follower._next == {0: 1, 1: 1}, "where the next consumer begins"


def test_it_has_caught_up_at_the_end_of_every_partition(follower, sink):
    end = KafkaError(KafkaError._PARTITION_EOF)
    follower._pass_on([Message(0, 0), Message(0, 1, end)])
    assert not follower.caught_up and follower.not_ready()
    follower._pass_on([Message(1, 0, end)])
    assert follower.caught_up
    assert sink.taken == [(0, 0)]
