"""A whole running Penstock as the end-to-end scenarios see it: publish to topics, read topics, call roles, break parts.

Scenarios use this class alone, so that another fixture (containers) can serve the same ones: what differs between
installations is behind `Machinery`.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeVar

import waiting
from confluent_kafka import Consumer, Producer, TopicPartition

from penstock.infra.settings import Settings
from penstock.ranker.client import RankerClient
from penstock.retrieval.client import ModelsClient, RetrievalClient
from penstock.schemas import rpc, topics
from penstock.schemas.errors import WireError
from penstock.schemas.events import DeadLetter, MinVersion, Page, Posting, RankQuery, RankRequest, RankResult
from penstock.schemas.topics import Topic
from penstock.schemas.wire import codec

T = TypeVar("T")

PATIENCE = 60.0  # seconds a condition may take on a busy two-core machine before a scenario has failed


class Machinery(Protocol):
    """How the parts of this installation are broken and mended."""

    def settings(self) -> Settings: ...

    def kill(self, part: str) -> None:
        """End a part at once (SIGKILL), as a crash would."""

    def heal(self) -> None:
        """What an operator does after a crash: bring everything that is down up again."""


def eventually(condition: Callable[[], T | None], what: str, timeout: float = PATIENCE) -> T:
    """`waiting.eventually` with the patience of a scenario, asking a busy machine less often."""
    return waiting.eventually(condition, what, timeout, pause_s=0.05)


class System:
    def __init__(self, machinery: Machinery) -> None:
        self.machinery = machinery
        self.settings = machinery.settings()
        self.retrieval = RetrievalClient(self.settings.retrieval.shards or (self.settings.retrieval.listen,))
        self.ranker = RankerClient(self.settings.ranker.listen)
        self.models = ModelsClient(self.settings.models.listen)
        self._producer = Producer(self.settings.kafka.properties() | {"linger.ms": 0})
        self._names = itertools.count()

    def close(self) -> None:
        for client in (self.retrieval, self.ranker, self.models):
            client.close()

    def new_id(self, stem: str) -> str:
        """An id that no other scenario, and no earlier run on this installation, has used."""
        return f"{stem}-{uuid.uuid4().hex[:8]}-{next(self._names)}"

    # --- topics ----------------------------------------------------------------------------------------------

    def publish(self, topic: Topic, *records: Any) -> None:
        """Publish records as a producer would, and wait until the broker has them."""
        self.publish_raw(topic, [(topic.key(record), codec(topic.record).encode(record)) for record in records])

    def publish_raw(self, topic: Topic, pairs: Iterable[tuple[str, bytes]]) -> None:
        failed: list[Any] = []
        for key, value in pairs:
            self._producer.produce(
                topic.name, key=key, value=value, on_delivery=lambda error, _: failed.append(error) if error else None
            )
        assert self._producer.flush(PATIENCE) == 0, "the broker did not take every record in time"
        assert not failed

    def read(self, topic: Topic, unreadable: str = "raise") -> Iterator[Any]:
        """Every record of a topic that is there now, decoded, from the beginning; unreadable ones "raise" or "skip"."""
        consumer = Consumer(
            self.settings.kafka.properties() | {"group.id": self.new_id("reader"), "enable.auto.commit": False}
        )
        try:
            partitions = consumer.list_topics(topic.name, timeout=PATIENCE).topics[topic.name].partitions
            ends = {}
            for partition in partitions:
                low, high = consumer.get_watermark_offsets(TopicPartition(topic.name, partition), timeout=PATIENCE)
                if high > low:
                    ends[partition] = high
            consumer.assign([TopicPartition(topic.name, partition, 0) for partition in ends])
            deadline = time.monotonic() + PATIENCE
            while ends and time.monotonic() < deadline:
                message = consumer.poll(0.1)
                if message is not None and message.error() is None:
                    try:
                        record = codec(topic.record).decode(message.value())
                    except WireError:
                        if unreadable == "skip":
                            continue
                        raise
                    yield record
                for position in consumer.position([TopicPartition(topic.name, p) for p in ends]):
                    if position.offset >= ends[position.partition]:
                        del ends[position.partition]
            assert not ends, f"{topic.name} could not be read to its end"
        finally:
            consumer.close()

    def dead_letters(self, topic: Topic) -> list[DeadLetter]:
        return list(self.read(topics.dead_letter_topic(topic)))

    # --- roles -----------------------------------------------------------------------------------------------

    def row(self, posting_id: str, version: int | None = None) -> rpc.Row:
        """What retrieval holds of a posting; with `version`, once that version is searchable."""
        wanted = MinVersion(posting_id=posting_id, version=version) if version is not None else None
        request = rpc.GetRequest(posting_ids=(posting_id,), min_version=wanted, timeout_ms=int(PATIENCE * 1000))
        reply = self.retrieval.get(request, timeout=PATIENCE + 5)
        assert not reply.degraded, reply.degraded
        return reply.rows[0]

    def until(self, posting_id: str, state: rpc.RowState, version: int) -> rpc.Row:
        """The row, once it has this state and version."""

        def reached() -> rpc.Row | None:
            row = self.retrieval.get(rpc.GetRequest(posting_ids=(posting_id,)), timeout=5).rows[0]
            return row if row.state is state and row.update is not None and row.update.version == version else None

        return eventually(reached, f"{posting_id} {state} at version {version}")

    def search(self, text: str, **options: Any) -> RankResult:
        """A person's search through the ranker."""
        query = RankQuery(text=text, filters=options.pop("filters", None))
        request = RankRequest(
            request_id=self.new_id("search"),
            deadline=int(time.time() * 1000) + 30_000,
            query=query,
            page=Page(size=options.pop("size", 10), cursor=options.pop("cursor", None)),
            **options,
        )
        result = self.ranker.rank(request, timeout=35)
        assert result.error is None, result.error
        return result


def posting(posting_id: str, version: int = 1, **changes: Any) -> Posting:
    """A small valid posting."""
    fields: dict[str, Any] = {
        "title": "Veterinary nurse",
        "description": "Care for animals in a small practice. Assist in surgery and speak with their owners.",
        "company": "Paws & Co",
    }
    return Posting(posting_id=posting_id, version=version, **(fields | changes))
