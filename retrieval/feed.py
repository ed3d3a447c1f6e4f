"""index.update.v1 as a shard reads it: a log that is polled from given offsets, and librdkafka behind it.

The shard knows only `Feed`; tests give it a log in memory. A shard owns its partitions by settings, not by a consumer
group, and its offsets live in its snapshots. A broker that goes away and comes back is librdkafka's affair.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from penstock.infra.settings import KafkaSettings
from penstock.infra.telemetry import DEGRADED

log = structlog.get_logger(role="retrieval")

ASK_TIMEOUT_S = 3.0
SAY_AGAIN_S = 30.0
QUIET = {"log_level": 2}  # what goes wrong comes through error_cb; librdkafka's own log would say it many times
AWAY_AFTER_S = 10.0  # without any broker for so long is worth saying
_TOPIC_GONE = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION)


class LogUnavailable(Exception):
    """The topic cannot be read now: no broker, no such topic, no such partition. Says which."""


class Errors:
    """Counts every error of the client and says each kind once in a while: an absent broker makes many a second."""

    def __init__(self) -> None:
        self._said_at: dict[int, float] = {}

    def count(self, error: KafkaError) -> None:
        DEGRADED.labels("retrieval", "kafka").inc()
        now = time.monotonic()
        if now - self._said_at.get(error.code(), -SAY_AGAIN_S) >= SAY_AGAIN_S:
            self._said_at[error.code()] = now
            log.warning("kafka", error=_said(error))


@dataclass(frozen=True, slots=True)
class Record:
    """One message."""

    partition: int
    offset: int
    timestamp_ms: int | None
    key: bytes | None
    value: bytes | None


@dataclass(slots=True)
class Polled:
    """What a poll brought: records in the order of each partition, and partitions that were read to their end."""

    records: list[Record] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)  # partition -> the offset that comes next


@dataclass(frozen=True, slots=True)
class LogInfo:
    """Which log this is, and how long it is now."""

    log_id: str  # <cluster id>/<topic id>: a topic or cluster made anew has another
    highs: Mapping[int, int]  # partition -> the next offset to be written


class Feed(Protocol):
    """One reader of some partitions, used by one thread."""

    def poll(self, limit: int, timeout_s: float) -> Polled:
        """At most `limit` records; waits up to `timeout_s` for the first. Raises LogUnavailable: open it again."""

    def highs(self) -> dict[int, int]:
        """The next offset to be written, by partition, as far as known without asking."""

    def trouble(self) -> str:
        """Why nothing has come for a long time; empty when all is well."""

    def close(self) -> None: ...


class Source(Protocol):
    """How a shard finds its log and opens a feed. Both raise LogUnavailable."""

    def describe(self) -> LogInfo: ...

    def open(self, offsets: Mapping[int, int | None]) -> Feed:
        """From these offsets on; None: from the beginning."""


class KafkaLog:
    """`Source` over a topic; `partitions` empty means all of them."""

    def __init__(self, settings: KafkaSettings, topic: str, partitions: Sequence[int], group: str) -> None:
        self._settings = settings
        self._topic = topic
        self._partitions = tuple(partitions)
        self._group = f"{settings.group_prefix}-{group}"
        self._errors = Errors()

    def describe(self) -> LogInfo:
        # A client of its own for each asking: one that met a wrong address would keep it.
        properties: dict[str, Any] = {**QUIET, **self._settings.properties(), "error_cb": self._errors.count}
        consumer = Consumer({**properties, "group.id": self._group})
        try:
            admin = AdminClient(properties)  # held until the answer: its futures do not keep it alive
            asked = admin.describe_topics(TopicCollection([self._topic]), request_timeout=ASK_TIMEOUT_S)
            found = asked[self._topic].result(ASK_TIMEOUT_S + 1)
            cluster = consumer.list_topics(self._topic, timeout=ASK_TIMEOUT_S).cluster_id
            there = {partition.id for partition in found.partitions}
            wanted = self._partitions or tuple(sorted(there))
            lacking = [partition for partition in wanted if partition not in there]
            if lacking:
                raise LogUnavailable(f"{self._topic} has partitions 0 to {len(there) - 1}, not {lacking}")
            highs = {}
            for partition in wanted:
                place = TopicPartition(self._topic, partition)
                ends: tuple[int, int] = consumer.get_watermark_offsets(place, timeout=ASK_TIMEOUT_S)
                highs[partition] = ends[1]
        except LogUnavailable:
            raise
        except Exception as error:  # KafkaException and the futures' own
            raise LogUnavailable(f"{self._topic} at {self._settings.bootstrap_servers}: {_said(error)}") from error
        finally:
            consumer.close()
        return LogInfo(f"{cluster}/{found.topic_id}", highs)

    def open(self, offsets: Mapping[int, int | None]) -> Feed:
        return _KafkaFeed(self._settings, self._topic, self._group, offsets, self._errors)


class _KafkaFeed:
    def __init__(
        self, settings: KafkaSettings, topic: str, group: str, offsets: Mapping[int, int | None], errors: Errors
    ) -> None:
        self._away_since: float | None = None
        self._errors = errors
        self._consumer = Consumer(
            {
                **QUIET,
                "fetch.wait.max.ms": 500,  # how long an idle fetch rests at the broker; a new record ends it at once
                "fetch.error.backoff.ms": 100,
                "fetch.queue.backoff.ms": 50,
                "reconnect.backoff.max.ms": 1_000,
                "queued.max.messages.kbytes": 32_768,
                **settings.properties(),
                "group.id": group,
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "allow.auto.create.topics": False,
                "auto.offset.reset": "earliest",  # a log that lost our offset is read anew: applying is idempotent
                "statistics.interval.ms": 1_000,
                "stats_cb": self._on_statistics,
                "error_cb": errors.count,
            }
        )
        self._places = [
            TopicPartition(topic, partition, OFFSET_BEGINNING if offset is None else offset)
            for partition, offset in offsets.items()
        ]
        self._consumer.assign(self._places)

    def poll(self, limit: int, timeout_s: float) -> Polled:
        out = Polled()
        message = self._consumer.poll(timeout_s)
        while message is not None:
            error = message.error()
            if error is None:
                out.records.append(_record(message))
            elif error.code() == KafkaError._PARTITION_EOF:
                partition, offset = message.partition(), message.offset()
                assert partition is not None and offset is not None, "the end of a partition has both"
                out.ends[partition] = offset
            elif error.fatal() or error.code() in _TOPIC_GONE:
                raise LogUnavailable(_said(error))
            else:
                self._errors.count(error)
            message = self._consumer.poll(0) if len(out.records) < limit else None
        return out

    def highs(self) -> dict[int, int]:
        out = {}
        for place in self._places:
            _low, high = self._consumer.get_watermark_offsets(place, cached=True)
            if high >= 0:
                out[place.partition] = high
        return out

    def trouble(self) -> str:
        away = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        return f"no Kafka broker for {away:.0f} s" if away >= AWAY_AFTER_S else ""

    def close(self) -> None:
        self._consumer.close()

    def _on_statistics(self, text: str) -> None:
        brokers = json.loads(text).get("brokers", {}).values()
        if any(broker["state"] == "UP" and broker["nodeid"] >= 0 for broker in brokers):
            self._away_since = None
        elif self._away_since is None:
            self._away_since = time.monotonic()


def _record(message: Message) -> Record:
    kind, timestamp = message.timestamp()
    partition, offset = message.partition(), message.offset()
    assert partition is not None and offset is not None, "a consumed message has both"
    return Record(partition, offset, timestamp if kind else None, message.key(), message.value())


def _said(error: object) -> str:
    if isinstance(error, KafkaException) and error.args:
        error = error.args[0]
    said = error.str() if isinstance(error, KafkaError) else str(error)
    return said or type(error).__name__
