"""Kafka clients as the command line and the demo use them: checked publishing, reading a topic to its end, tailing it.

Invariants: what `Publisher.flush` returned from is on the broker, or it raised; a reader commits nothing and joins no
group, so that looking never disturbs a consumer. Errors are typed and say what to do.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from penstock.infra.settings import KafkaSettings
from penstock.schemas import framing
from penstock.schemas.topics import Topic
from penstock.schemas.wire import Codec

METADATA_TIMEOUT_S = 5.0
DELIVERY_TIMEOUT_MS = 300_000  # a broker may be killed and started again below a running publisher
_LOG = logging.getLogger("penstock.kafka")
_LOG.addHandler(logging.NullHandler())  # librdkafka's own lines go to a log, never onto a person's terminal

Delivered = Callable[[int], None]  # the record's Kafka timestamp, epoch milliseconds


class KafkaTrouble(Exception):
    """Base of what can go wrong between here and the broker."""


class BrokerUnreachable(KafkaTrouble):
    """Nobody answers at the bootstrap servers."""


class TopicMissing(KafkaTrouble):
    """The broker has no such topic; automatic creation is off."""


class PublishFailed(KafkaTrouble):
    """Some records did not reach the broker, or nobody can tell whether they did."""


def check_broker(settings: KafkaSettings, topics: Sequence[str] = (), *, timeout: float = METADATA_TIMEOUT_S) -> None:
    """Raises BrokerUnreachable when nobody answers within `timeout` seconds, TopicMissing naming what is not there."""
    missing = sorted(set(topics) - existing_topics(settings, timeout=timeout).keys())
    if missing:
        raise TopicMissing(
            f"the broker at {settings.bootstrap_servers} has no topic {', '.join(missing)}: "
            "make the topics with `penstock topics create`"
        )


def existing_topics(settings: KafkaSettings, *, timeout: float = METADATA_TIMEOUT_S) -> dict[str, int]:
    """Topic name to its number of partitions. Raises BrokerUnreachable."""
    admin = AdminClient({**settings.properties()}, logger=_LOG)
    try:
        metadata = admin.list_topics(timeout=timeout)
    except KafkaException as error:
        raise BrokerUnreachable(
            f"no Kafka broker answers at {settings.bootstrap_servers} ({_reason(error)}): "
            "start it, or correct kafka.bootstrap_servers"
        ) from error
    return {name: len(topic.partitions) for name, topic in metadata.topics.items() if topic.error is None}


def topic_codec(settings: KafkaSettings, topic: Topic) -> Codec[Any]:
    """The codec of a topic's records under these settings: see `framing.topic_codec`."""
    return framing.topic_codec(topic, settings.schema_registry)


class Publisher:
    """An idempotent producer that knows what was delivered. One thread uses it; close it, or use it in a `with`."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer = Producer(
            {
                "linger.ms": 5,
                "partitioner": "murmur2_random",  # as Java's and so Flink's producers: a key has one partition
                "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
                **settings.properties(),
                "enable.idempotence": True,  # order is kept and nothing doubled across retries
            },
            logger=_LOG,
        )
        self._codecs: dict[str, Codec[Any]] = {}
        self.delivered = 0
        self._failures: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flushes after good work; after an error or Ctrl-C drops what is still queued, so that leaving is quick."""
        if kind is None:
            self.flush()
        else:
            self._producer.purge()
            self._producer.flush(1)

    def publish(self, topic: Topic, record: Any) -> None:
        """One record under its topic's key. Raises WireError when it cannot be encoded."""
        known = self._codecs.setdefault(topic.name, topic_codec(self._settings, topic))
        self.publish_raw(topic.name, topic.key(record).encode(), known.encode(record))

    def publish_raw(
        self,
        topic: str,
        key: bytes | None,
        value: bytes,
        *,
        timestamp_ms: int | None = None,
        on_delivered: Delivered | None = None,
    ) -> None:
        """Bytes as they are. Blocks while the local queue is full; `on_delivered` runs inside `poll` and `flush`."""

        def report(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                self._failures.append(f"{topic}: {error.str()}")
                return
            self.delivered += 1
            if on_delivered is not None:
                on_delivered(timestamp_of(message) or 0)

        stamped = 0 if timestamp_ms is None else timestamp_ms  # 0: the moment of producing
        while True:
            try:
                self._producer.produce(topic, value, key, on_delivery=report, timestamp=stamped)
                break
            except BufferError:
                self._producer.poll(0.1)
        self._producer.poll(0)

    def poll(self, seconds: float) -> None:
        """Serve delivery reports for at most so long."""
        self._producer.poll(seconds)

    def flush(self, timeout: float = DELIVERY_TIMEOUT_MS / 1000) -> None:
        """Wait until everything is on the broker. Raises PublishFailed with how many are not, and why."""
        waiting = self._producer.flush(timeout)
        if waiting or self._failures:
            failed, self._failures = self._failures, []
            why = failed[0] if failed else f"no answer within {timeout:.0f} s"
            raise PublishFailed(
                f"{waiting + len(failed)} records did not reach the broker at {self._settings.bootstrap_servers} "
                f"({why}); {self.delivered} did: publish the rest again, repeats do no harm"
            )


class Tail:
    """Reads what comes after a moment: made at the present end of the topics (or their beginning), then polled.

    One thread uses it.
    """

    def __init__(self, settings: KafkaSettings, topics: Sequence[str], *, from_beginning: bool = False) -> None:
        self._consumer = _consumer(settings)
        low_or_high = 0 if from_beginning else 1
        try:
            ends = [
                TopicPartition(
                    topic,
                    partition,
                    _watermarks(self._consumer, settings, topic, partition)[low_or_high],
                )
                for topic, partitions in _partitions(settings, topics).items()
                for partition in range(partitions)
            ]
        except BaseException:
            self._consumer.close()
            raise
        self._consumer.assign(ends)

    def poll(self, timeout: float, most: int = 500) -> list[Message]:
        """What has come, at most `most` records; waits up to `timeout` seconds for the first."""
        first = self._consumer.poll(timeout)
        if first is None:
            return []
        return [message for message in [first, *self._consumer.consume(most, 0.0)] if not _failed(message)]

    def close(self) -> None:
        self._consumer.close()


def read_all(settings: KafkaSettings, topics: Sequence[str], *, timeout: float = 60.0) -> Iterator[Message]:
    """Every record that the topics hold at the call, in partition order. Raises KafkaTrouble; commits nothing."""
    consumer = _consumer(settings)
    try:
        starts, ends = [], {}
        for topic, partitions in _partitions(settings, topics).items():
            for partition in range(partitions):
                low, high = _watermarks(consumer, settings, topic, partition)
                if low < high:
                    starts.append(TopicPartition(topic, partition, low))
                    ends[topic, partition] = high
        consumer.assign(starts)
        yield from _until(consumer, settings, ends, time.monotonic() + timeout)
    finally:
        consumer.close()


def _until(
    consumer: Consumer, settings: KafkaSettings, ends: Mapping[tuple[str, int], int], deadline: float
) -> Iterator[Message]:
    """Messages until each partition's position is at its end: compaction may have left gaps before it."""
    open_ = dict(ends)
    while open_:
        for message in consumer.consume(500, 0.2):
            if not _failed(message) and (at := place_of(message)).offset < ends[at.topic, at.partition]:
                yield message
        for place in consumer.position([TopicPartition(topic, partition) for topic, partition in open_]):
            if place.offset >= open_[place.topic, place.partition]:
                del open_[place.topic, place.partition]
        if open_ and time.monotonic() > deadline:
            raise BrokerUnreachable(
                f"the broker at {settings.bootstrap_servers} stopped answering while {len(open_)} partitions were read"
            )


def timestamp_of(message: Message) -> int | None:
    """The record's Kafka timestamp, epoch milliseconds; None where the broker keeps none."""
    kind, millis = message.timestamp()
    return None if kind == TIMESTAMP_NOT_AVAILABLE else int(millis)


def place_of(message: Message) -> TopicPartition:
    """Topic, partition and offset of a record that was read."""
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    if topic is None or partition is None or offset is None:
        raise KafkaTrouble("a message without a place: it was never on a topic")
    return TopicPartition(topic, partition, offset)


def _consumer(settings: KafkaSettings) -> Consumer:
    return Consumer(
        {
            **settings.properties(),
            "group.id": f"{settings.group_prefix}-reader-{uuid.uuid4().hex}",  # required; never joined
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
        },
        logger=_LOG,
    )


def _partitions(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, int]:
    there = existing_topics(settings)
    missing = sorted(set(topics) - there.keys())
    if missing:
        raise TopicMissing(
            f"the broker at {settings.bootstrap_servers} has no topic {', '.join(missing)}: "
            "make the topics with `penstock topics create`"
        )
    return {topic: there[topic] for topic in topics}


def _watermarks(consumer: Consumer, settings: KafkaSettings, topic: str, partition: int) -> tuple[int, int]:
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=METADATA_TIMEOUT_S)
    except KafkaException as error:
        raise BrokerUnreachable(
            f"the broker at {settings.bootstrap_servers} does not answer for {topic} ({_reason(error)})"
        ) from error
    return int(low), int(high)


def _failed(message: Message) -> bool:
    """Whether this is an event instead of a record. Passing trouble is librdkafka's to retry; the rest is raised."""
    error = message.error()
    if error is None:
        return False
    if error.retriable() or error.code() in (
        KafkaError._PARTITION_EOF,
        KafkaError._TRANSPORT,
        KafkaError._ALL_BROKERS_DOWN,
    ):
        return True
    raise KafkaTrouble(f"reading from Kafka: {error.str()}")


def _reason(error: KafkaException) -> str:
    given = error.args[0] if error.args else error
    return given.str() if isinstance(given, KafkaError) else str(given)
