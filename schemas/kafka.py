"""Kafka as the roles' loops see it: small protocols, and librdkafka behind them.

The loops (the ranker's feeds, the enrichment workers) know only `Source` and `Sink`; tests give them a log in memory,
the servers a broker. A broker that goes away and comes back is librdkafka's affair: it reconnects and goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

log = structlog.get_logger()

METADATA_TIMEOUT_S = 2.0
ASK_AGAIN_S = 10.0  # how often a source asks whether its topic is still the same
SAY_AGAIN_S = 30.0  # how often a lasting outage is logged


class Access(Protocol):
    """The part of `settings.kafka` that says how clients reach the broker."""

    @property
    def group_prefix(self) -> str: ...

    def properties(self) -> dict[str, str]: ...


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the source's topic."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int | None


@dataclass(frozen=True, slots=True)
class Rebalance:
    """What a source calls, from within `poll`, when its partitions change."""

    assigned: Callable[[Sequence[int]], None]
    revoked: Callable[[Sequence[int]], None]


class Source(Protocol):
    """A consumer of one topic, used by one thread. Nothing is committed but by `commit`."""

    def poll(self, limit: int, timeout_s: float) -> list[Record]: ...

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def seek(self, positions: Mapping[int, int | None]) -> bool:
        """Go on from these offsets (None: from the beginning); False when it cannot be done before another poll."""

    def commit(self, positions: Mapping[int, int], *, wait: bool = False) -> None: ...

    def log_name(self) -> str | None:
        """<cluster id>/<topic id>, within which offsets mean something; None while the broker does not say."""

    def ends(self) -> dict[int, int]:
        """The next offset to be written, by partition, as far as known without asking."""

    def lag(self) -> int:
        """Records that are there and have not been polled, as far as known. May ask the broker, for a moment."""

    def close(self) -> None: ...


class Sink(Protocol):
    """A producer. `delivered` is called once with None or with what went wrong, mostly from `serve` or `flush`."""

    def send(self, topic: str, key: bytes | None, value: bytes, delivered: Callable[[str | None], None]) -> None: ...

    def serve(self) -> None: ...

    def flush(self, timeout_s: float) -> int: ...


class KafkaSource:
    """`Source` over a consumer group. Starts at the beginning where the group has no position."""

    def __init__(
        self,
        settings: Access,
        topic: str,
        group: str,
        rebalance: Rebalance,
        client: Mapping[str, str] | None = None,
    ) -> None:
        """`client`: this consumer's own properties, which settings may overrule."""
        self.topic = topic
        self._consumer = Consumer(
            {
                "auto.offset.reset": "earliest",
                "enable.partition.eof": False,
                "allow.auto.create.topics": False,
                "topic.metadata.refresh.interval.ms": 10_000,
                "reconnect.backoff.max.ms": 1_000,
                "log_level": 2,  # librdkafka's own lines, many a second while a broker is away: `Outage` says it once
                "session.timeout.ms": 10_000,  # a killed replica's partitions are free again after this
                "heartbeat.interval.ms": 2_000,
                **(client or {}),
                **settings.properties(),
                "group.id": f"{settings.group_prefix}-{group}",
                "partition.assignment.strategy": "range,roundrobin",  # assign() below is the eager protocol's
                "enable.auto.commit": False,
                "on_commit": _log_commit,
                "error_cb": Outage(topic),
            }
        )
        self._rebalance = rebalance
        self._paused = False
        self._log_name: str | None = None
        self._ask_at = float("-inf")
        asking: dict[str, Any] = {"log_level": 2, **settings.properties(), "error_cb": Outage(topic)}
        self._admin = AdminClient(asking)
        self._consumer.subscribe([topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked)

    def log_name(self) -> str | None:
        """<cluster id>/<topic id>; a topic made anew has another, and then its offsets begin again.

        Asks the broker the first time and every ASK_AGAIN_S, for twice METADATA_TIMEOUT_S at most; while it does not
        answer, the last answer stands.
        """
        if self._log_name is None or time.monotonic() >= self._ask_at:
            try:
                self._log_name = self._asked_log_name()
            except Exception as error:  # KafkaException and the futures' own
                log.warning("kafka does not say which topic it is", topic=self.topic, error=str(error))
            self._ask_at = time.monotonic() + ASK_AGAIN_S
        return self._log_name

    def _asked_log_name(self) -> str:
        asked = self._admin.describe_topics(TopicCollection([self.topic]), request_timeout=METADATA_TIMEOUT_S)
        found = asked[self.topic].result(METADATA_TIMEOUT_S)
        cluster = self._admin.list_topics(self.topic, METADATA_TIMEOUT_S).cluster_id
        return f"{cluster}/{found.topic_id}"

    def poll(self, limit: int, timeout_s: float) -> list[Record]:
        """What is there, at most `limit`; waits up to `timeout_s` for the first.

        One by one, because consume() waits for the whole number and gives records of partitions just lost.
        """
        records: list[Record] = []
        message = self._consumer.poll(timeout_s)
        while message is not None:
            error = message.error()
            if error is None:
                records.append(_record(message))
            else:
                self._report(error)
            message = self._consumer.poll(0) if len(records) < limit else None
        return records

    def pause(self) -> None:
        self._paused = True
        self._consumer.pause(self._consumer.assignment())

    def resume(self) -> None:
        self._paused = False
        self._consumer.resume(self._consumer.assignment())

    def seek(self, positions: Mapping[int, int | None]) -> bool:
        try:
            for partition, offset in positions.items():
                place = OFFSET_BEGINNING if offset is None else offset
                self._consumer.seek(TopicPartition(self.topic, partition, place))
        except KafkaException as error:  # assigned, but its fetcher has not started yet
            log.debug("seek again", topic=self.topic, error=str(error))
            return False
        return True

    def commit(self, positions: Mapping[int, int], *, wait: bool = False) -> None:
        if positions:
            places = [TopicPartition(self.topic, partition, offset) for partition, offset in positions.items()]
            try:
                if wait:
                    self._consumer.commit(offsets=places, asynchronous=False)
                else:
                    self._consumer.commit(offsets=places, asynchronous=True)
            except KafkaException as error:  # not ours any more, or the broker is away: a later commit says it again
                log.warning("offsets not committed", topic=self.topic, error=str(error))

    def ends(self) -> dict[int, int]:
        out = {}
        for place in self._consumer.assignment():
            _low, high = self._consumer.get_watermark_offsets(place, cached=True)
            if high >= 0:
                out[place.partition] = high
        return out

    def lag(self) -> int:
        places = self._consumer.position(self._consumer.assignment())
        unread = [place for place in places if place.offset < 0]  # nothing polled yet: where the group left off
        began: dict[int, int] = {}
        if unread:
            try:
                began = {
                    place.partition: place.offset for place in self._consumer.committed(unread, METADATA_TIMEOUT_S)
                }
            except KafkaException as error:
                log.debug("kafka does not say where the group is", topic=self.topic, error=str(error))
        behind = 0
        for place in places:
            low, high = self._consumer.get_watermark_offsets(place, cached=True)
            at = place.offset if place.offset >= 0 else began.get(place.partition, high)
            behind += max(0, high - max(at, low)) if high >= 0 else 0
        return behind

    def close(self) -> None:
        self._consumer.close()

    def _assigned(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        self._rebalance.assigned([place.partition for place in places])
        consumer.assign(places)
        if self._paused:
            consumer.pause(places)

    def _revoked(self, consumer: Consumer, places: list[TopicPartition]) -> None:
        self._rebalance.revoked([place.partition for place in places])

    def _report(self, error: KafkaError) -> None:
        if error.fatal():
            raise KafkaException(error)
        log.warning("kafka", topic=self.topic, error=str(error))


class KafkaSink:
    """`Sink` over an idempotent producer. Safe to send from any thread; one thread serves."""

    def __init__(self, settings: Access) -> None:
        self._producer = Producer(
            {
                "linger.ms": 2,
                "partitioner": "murmur2_random",  # as Java's producers: a key has one partition, whoever sends it
                "message.max.bytes": 4 << 20,  # the broker's own bound decides
                "compression.type": "lz4",
                "reconnect.backoff.max.ms": 1_000,
                "log_level": 2,
                **settings.properties(),
                "enable.idempotence": True,
                "error_cb": Outage("results"),
            }
        )
        self._room = threading.Lock()

    def send(self, topic: str, key: bytes | None, value: bytes, delivered: Callable[[str | None], None]) -> None:
        def report(error: KafkaError | None, _message: Message) -> None:
            delivered(None if error is None else str(error))

        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=report)
                return
            except BufferError:  # librdkafka's own queue is full: let it deliver some first
                with self._room:
                    self._producer.poll(0.05)
            except KafkaException as error:  # never taken: larger than the producer may send
                delivered(str(error))
                return

    def serve(self) -> None:
        self._producer.poll(0)

    def flush(self, timeout_s: float) -> int:
        """How many are still undelivered after `timeout_s`."""
        left: int = self._producer.flush(timeout_s)
        return left


class Outage:
    """librdkafka's error callback: says what is wrong now and then. Called on one client's thread."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._said_at = float("-inf")

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if error.fatal() or now - self._said_at >= SAY_AGAIN_S:
            self._said_at = now
            log.warning("kafka", of=self._what, error=str(error))


def _record(message: Message) -> Record:
    kind, timestamp = message.timestamp()
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None, "a consumed message has both"
    return Record(partition, offset, message.key(), message.value(), timestamp if kind else None)


def _log_commit(error: KafkaError | None, places: list[TopicPartition]) -> None:
    if error is not None:
        log.warning("offsets not committed", error=str(error), partitions=[place.partition for place in places])
