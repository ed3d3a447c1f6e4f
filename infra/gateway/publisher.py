"""Records onto topics for callers who wait: done once the broker has it.

A thread serves delivery reports; the event loop owns everything else. Idempotent: a retry inside the client neither
doubles nor reorders.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from penstock.infra.gateway import metrics
from penstock.infra.gateway.errors import away
from penstock.infra.settings import KafkaSettings
from penstock.schemas.framing import topic_codec
from penstock.schemas.topics import Topic

_LIBRDKAFKA = logging.getLogger("penstock.gateway.kafka")
_LIBRDKAFKA.addHandler(logging.NullHandler())
POLL_S = 0.1
STUCK_S = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    partition: int
    offset: int


class Publisher(Protocol):
    async def publish(self, topic: Topic, record: Any) -> Place:
        """Where the broker put it. Raises WireError (too large) or Problem (503)."""
        ...

    async def metadata(self, timeout_s: float) -> str:
        """Ask the broker something that costs it little: why it did not answer, or empty."""
        ...

    @property
    def delivered_at(self) -> float:
        """When the broker last took a record, on the monotonic clock."""
        ...

    def stuck(self) -> str: ...


class KafkaPublisher:
    """Make it on the event loop that uses it."""

    def __init__(self, settings: KafkaSettings, timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._producer = Producer(
            {
                "linger.ms": 2,
                "partitioner": "murmur2_random",  # as Java's and so Flink's producers: a key has one partition
                "delivery.timeout.ms": max(int(timeout_s * 1000), 1_000),
                "queue.buffering.max.messages": 10_000,
                **settings.properties(),
                "enable.idempotence": True,
            },
            logger=_LIBRDKAFKA,
        )
        self._stop = threading.Event()
        self._beat = time.monotonic()
        self._thread = threading.Thread(target=self._serve, name="delivery reports", daemon=True)
        self._thread.start()
        self.delivered_at = float("-inf")

    async def publish(self, topic: Topic, record: Any) -> Place:
        codec = topic_codec(topic, self._settings.schema_registry)
        if self._settings.schema_registry:  # it may ask the registry
            value = await asyncio.to_thread(codec.encode, record)
        else:
            value = codec.encode(record)
        done: asyncio.Future[Place] = self._loop.create_future()

        def report(error: KafkaError | None, message: Message) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits for it any more
                self._loop.call_soon_threadsafe(self._tell, done, error, message)

        try:
            self._producer.produce(topic.name, value, topic.key(record).encode(), on_delivery=report)
        except BufferError:
            raise away("too much waits for the broker already") from None
        try:
            place = await asyncio.wait_for(done, self._timeout_s)
        except TimeoutError:
            raise away("the broker has not confirmed it yet: it may be there, and a repeat does no harm") from None
        except KafkaException as error:
            raise away("the broker did not take it") from error
        metrics.PUBLISHED.labels(topic.name).inc()
        return place

    def _tell(self, done: asyncio.Future[Place], error: KafkaError | None, message: Message) -> None:
        if done.done():
            return  # who asked has gone
        partition, offset = message.partition(), message.offset()
        if error is not None or partition is None or offset is None:
            done.set_exception(KafkaException(error))
            return
        self.delivered_at = time.monotonic()
        done.set_result(Place(partition, offset))

    async def metadata(self, timeout_s: float) -> str:
        def ask() -> str:
            try:
                found = self._producer.list_topics(timeout=timeout_s)
            except KafkaException:
                return "no Kafka broker answers"
            return "" if found.brokers else "the Kafka cluster has no broker"

        return await asyncio.to_thread(ask)

    def stuck(self) -> str:
        still = time.monotonic() - self._beat
        return f"delivery reports have not moved for {still:.0f} s" if still > STUCK_S else ""

    def close(self, timeout_s: float) -> None:
        self._stop.set()
        self._thread.join(timeout_s)
        self._producer.flush(timeout_s)

    def _serve(self) -> None:
        while not self._stop.is_set():
            self._producer.poll(POLL_S)
            self._beat = time.monotonic()
