"""Alerts older than what is in memory, read from the topic itself, a batch at a time.

A batch opens a consumer and closes it again: nothing is held while its reader is slow. A few at once, the rest waits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from penstock.infra.gateway.alert_log import Entry, entry_of
from penstock.infra.gateway.errors import Problem, away
from penstock.infra.gateway.follower import METADATA_S, Record, consumer_of
from penstock.infra.settings import KafkaSettings
from penstock.schemas.events import Alert
from penstock.schemas.topics import ALERTS
from penstock.schemas.wire import Codec

AT_ONCE = 4
BATCH = 500
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class Batch:
    """Entries from `low` (or where was asked) on; go on at `next`. `high` is the topic's next offset."""

    entries: Sequence[Entry]
    next: int
    low: int
    high: int


class History(Protocol):
    async def read(self, partition: int, start: int, stop: int) -> Batch:
        """Some of the entries of [start, stop). Raises Problem (503)."""
        ...


class KafkaHistory:
    def __init__(self, settings: KafkaSettings, codec: Codec[Alert], now: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._codec = codec
        self._now = now
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def read(self, partition: int, start: int, stop: int) -> Batch:
        async with self._slots:
            try:
                return await asyncio.to_thread(self._read, partition, start, stop)
            except KafkaException as error:
                raise _unread() from error

    def _read(self, partition: int, start: int, stop: int) -> Batch:
        consumer = consumer_of(self._settings)
        try:
            place = TopicPartition(ALERTS.name, partition)
            low, high = consumer.get_watermark_offsets(place, timeout=METADATA_S)
            begin, end = max(start, low), min(stop, high)
            if begin >= end:
                return Batch((), begin, low, high)
            consumer.assign([TopicPartition(ALERTS.name, partition, begin)])
            deadline = self._now() + PATIENCE_S
            entries: list[Entry] = []
            position = begin
            while position < end and len(entries) < BATCH:
                for message in consumer.consume(BATCH, 0.2):
                    error = message.error()
                    if error is None:
                        offset = message.offset()
                        assert offset is not None
                        if offset < end:
                            record = Record(partition, offset, message.timestamp()[1], message.value())
                            entries.append(entry_of(record, self._codec))
                        position = offset + 1
                    elif error.code() == KafkaError._PARTITION_EOF:
                        position = end  # what is left are markers, no records
                if position < end and self._now() > deadline:
                    raise _unread()
            return Batch(entries, min(position, end), low, high)
        finally:
            consumer.close()


def _unread() -> Problem:
    return away("the broker does not give the alerts of before")
