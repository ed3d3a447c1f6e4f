"""Refused records on their way to their topic's dead letters: at least once, counted, never in the way of the rest."""

from __future__ import annotations

import functools
from collections import deque

import structlog
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from penstock.infra.settings import KafkaSettings
from penstock.infra.telemetry import DEAD_LETTERS, DEGRADED
from penstock.retrieval.feed import QUIET, Errors, Record
from penstock.schemas import topics
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.events import DeadLetter
from penstock.schemas.wire import codec

log = structlog.get_logger(role="retrieval")

STAGE = "index"


class DeadLetters:
    """Used by the shard's loop alone: `send`, and `serve` now and then. What is refused for now is sent again."""

    def __init__(self, settings: KafkaSettings, topic: topics.Topic) -> None:
        self._of = topic
        self._topic = topics.dead_letter_topic(topic)
        self._codec = codec(DeadLetter)
        self._producer = Producer(
            {
                **QUIET,
                "linger.ms": 5,
                "partitioner": "murmur2_random",  # as Java's producers: a key has one partition, whoever sends it
                "message.max.bytes": 4 << 20,  # a letter is a little longer than its record; the broker decides
                "reconnect.backoff.max.ms": 1_000,
                **settings.properties(),
                "enable.idempotence": True,
                "error_cb": Errors().count,
            }
        )
        self._again: deque[tuple[bytes | None, bytes]] = deque()
        self._flying = 0

    @property
    def outstanding(self) -> int:
        """Letters not yet delivered. A snapshot must wait for them: it would end their records' replay."""
        return self._flying + len(self._again)

    def send(self, record: Record, error: Exception, failed_at: int) -> None:
        DEAD_LETTERS.labels(self._of.name, STAGE, type(error).__name__).inc()
        posting_id = record.key.decode(errors="replace") if record.key is not None else None
        where = {"partition": record.partition, "offset": record.offset}
        log.warning("record refused", posting_id=posting_id, error=str(error), **where)
        letter = dead_letter(
            self._of,
            key=record.key,
            raw=record.value or b"",
            stage=STAGE,
            error=error,
            failed_at=failed_at,
            produced_at=record.timestamp_ms,
        )
        self._again.append((record.key, self._codec.encode_unbounded(letter)))
        self.serve()

    def serve(self) -> None:
        """Hands on what waits and takes in what was delivered. Never blocks."""
        for _ in range(len(self._again)):
            key, value = self._again[0]
            report = functools.partial(self._delivered, key, value)
            try:
                self._producer.produce(self._topic.name, value, key, on_delivery=report)
            except BufferError:
                break
            except KafkaException as error:
                self._lost(error)
            else:
                self._flying += 1
            self._again.popleft()
        self._producer.poll(0)

    def close(self, timeout_s: float) -> int:
        """How many are undelivered after `timeout_s`."""
        self.serve()
        self._producer.flush(timeout_s)
        return self.outstanding

    def _delivered(self, key: bytes | None, value: bytes, error: KafkaError | None, _message: Message) -> None:
        self._flying -= 1
        if error is None:
            return
        if error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD):
            self._lost(error)
        else:
            DEGRADED.labels("retrieval", "dead letter delayed").inc()
            self._again.append((key, value))

    @staticmethod
    def _lost(error: object) -> None:
        """The broker will never take it: the log has all that is left of it."""
        DEGRADED.labels("retrieval", "dead letter lost").inc()
        log.error("dead letter lost", error=str(error))
