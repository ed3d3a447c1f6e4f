"""One thread that follows one topic and hands what it reads to the event loop, in order.

It belongs to no group and commits nothing: every gateway reads all of it. Trouble with the broker is told by `trouble`,
retried for ever, and loses nothing: reading goes on where it stood. The thread owns the consumer; `beat`, `trouble` and
`caught_up` may be read from anywhere.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import structlog
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from penstock.infra.settings import KafkaSettings
from penstock.infra.telemetry import DEGRADED

log = structlog.get_logger(role="gateway")
_LIBRDKAFKA = logging.getLogger("penstock.gateway.kafka")
_LIBRDKAFKA.addHandler(logging.NullHandler())

POLL_S = 0.2
BATCH = 500
METADATA_S = 5.0
AGAIN_S = 1.0
STUCK_S = 30.0


@dataclass(frozen=True, slots=True)
class Record:
    """One record as it lies on the topic; `at_ms` is its Kafka timestamp."""

    partition: int
    offset: int
    at_ms: int
    value: bytes | None


class Sink(Protocol):
    """Who takes what was read. Called on the event loop, in the order of the topic."""

    def begin(self, starts: dict[int, int]) -> None:
        """Reading begins with these offsets, by partition. Called once."""
        ...

    def take(self, records: Sequence[Record]) -> None: ...


class Follower:
    """`start(low, high)` says where a partition's reading begins; `post` runs a function on the event loop."""

    def __init__(
        self,
        settings: KafkaSettings,
        topic: str,
        start: Callable[[int, int], int],
        sink: Sink,
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._start = start
        self._sink = sink
        self._post = post
        self._next: dict[int, int] = {}
        self._ended: set[int] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow {topic}", daemon=True)
        self._beat = time.monotonic()
        self.trouble = "has not begun"
        self.caught_up = False

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        self._stop.set()
        self._thread.join(timeout_s)

    def not_ready(self) -> str:
        """Why what it feeds is not whole; empty when it is."""
        if stuck := self.stuck():
            return stuck
        if self.trouble:
            return f"{self._topic}: {self.trouble}"
        return "" if self.caught_up else f"{self._topic} is still being read"

    def stuck(self) -> str:
        """Why the thread is not well; a broker that is away is not the thread's illness."""
        still = time.monotonic() - self._beat
        if not self._thread.is_alive() and not self._stop.is_set():
            return f"{self._topic}: its reader has ended"
        return f"{self._topic}: its reader has not moved for {still:.0f} s" if still > STUCK_S else ""

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Exception as error:  # whatever it is: say it, wait, go on where it stood
                self._say(_reason(error))
                self._beat = time.monotonic()
                self._stop.wait(AGAIN_S)

    def _follow(self) -> None:
        consumer = consumer_of(self._settings)
        try:
            self._assign(consumer)
            while not self._stop.is_set():
                messages = consumer.consume(BATCH, POLL_S)
                self._beat = time.monotonic()
                self._pass_on(messages)
        finally:
            consumer.close()

    def _assign(self, consumer: Consumer) -> None:
        found = consumer.list_topics(self._topic, timeout=METADATA_S).topics[self._topic]
        if found.error is not None:
            raise KafkaException(found.error)
        fresh: dict[int, int] = {}
        for partition in found.partitions:
            if partition not in self._next:
                low, high = consumer.get_watermark_offsets(TopicPartition(self._topic, partition), timeout=METADATA_S)
                fresh[partition] = min(max(self._start(low, high), low), high)
        if fresh:
            self._next |= fresh
            self._post(lambda: self._sink.begin(fresh))
        consumer.assign([TopicPartition(self._topic, p, offset) for p, offset in self._next.items()])

    def _pass_on(self, messages: Sequence[Message]) -> None:
        records, failure = [], None
        for message in messages:
            error = message.error()
            partition, offset = message.partition(), message.offset()
            if error is None:
                assert partition is not None and offset is not None
                records.append(Record(partition, offset, message.timestamp()[1], message.value()))
                self._next[partition] = offset + 1
            elif error.code() == KafkaError._PARTITION_EOF:
                assert partition is not None
                self._ended.add(partition)
            else:
                failure = error
        if records:  # those beside a failure too: the next consumer begins behind them
            self._post(lambda: self._sink.take(records))
        if failure is not None:
            raise KafkaException(failure)
        if messages:
            self.trouble = ""
        if not self.caught_up and self._next and self._ended >= self._next.keys():
            self.trouble = ""
            self._post(self._whole)  # behind the records that make it true

    def _whole(self) -> None:
        self.caught_up = True

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            log.warning("not reading", topic=self._topic, reason=trouble)
        DEGRADED.labels("gateway", f"not reading {self._topic}").inc()
        self.trouble = trouble


def consumer_of(settings: KafkaSettings) -> Consumer:
    """A consumer that joins no group and tells the end of each partition."""
    return Consumer(
        {
            **settings.properties(),
            "group.id": f"{settings.group_prefix}-gateway-{uuid.uuid4().hex}",  # required; never joined
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 50,
            "queued.max.messages.kbytes": 4_096,
        },
        logger=_LIBRDKAFKA,
    )


def _reason(error: Exception) -> str:
    given = error.args[0] if error.args else error
    return given.str() if isinstance(given, KafkaError) else f"{type(error).__name__}: {error}"
