"""index.update.v1 into the feature store: one loop, the only writer.

    1. place    read the positions that stand in Redis and go on from there; where there are none, from the beginning
    2. poll     up to BATCH records; what cannot be decoded is counted and skipped (retrieval dead-letters it), but a
                schema registry that is away is waited for
    3. write    the newer records and the positions after them, in one transaction that fails when the positions are
                not the ones this loop left there: Redis was flushed, or another replica took over. Then: 1
    4. prepare  what the language model can make ready of them (the engine keeps their tokens: ranker/engine/arena.py)
    5. commit   the same positions to Kafka, for people and tools that look at lag; nothing here reads them back

While Redis or the registry is away the batch is kept, the partitions are paused and the consumer stays in its group:
nothing is lost. When nothing comes, 1 is checked about every second, so that a flush on a quiet topic is healed too.

Where it stands: life-of-a-posting.md, step 7.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.errors import RedisAway
from penstock.ranker.feature_store import Batch, FeatureStore, PositionsMoved
from penstock.ranker.unframing import RegistryAway, unframed
from penstock.schemas.errors import WireError
from penstock.schemas.events import IndexUpdate
from penstock.schemas.kafka import Rebalance, Record, Source
from penstock.schemas.wire import Codec

log = structlog.get_logger(role="ranker")

BATCH = 500
POLL_S = 0.1
CHECK_EVERY_S = 1.0
REOPEN_AFTER_S = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the store is behind its topic, as this process knows."""

    state: str  # reading, or what it waits for
    lag_offsets: int
    lag_seconds: float
    written: int  # records since the process started


class FeatureFeed:
    """Owns the source and its state; `run` on one thread, `progress` from any.

    `now_ms` gives epoch milliseconds, `clock` monotonic seconds; `ingest` is the language model's.
    """

    def __init__(
        self,
        store: FeatureStore,
        open_source: Callable[[Rebalance], Source],
        codec: Codec[IndexUpdate],
        now_ms: Callable[[], int],
        clock: Callable[[], float],
        ingest: Callable[[Sequence[IndexUpdate]], None] | None = None,
    ) -> None:
        self._store = store
        self._ingest = ingest
        self._open_source = open_source
        self._codec = codec
        self._now_ms = now_ms
        self._clock = clock
        self._assigned: dict[int, int | None] = {}  # partition -> next offset to write, None: none written yet
        self._placed = False
        self._held: list[Record] = []
        self._checked_at = 0.0
        self._last_timestamp_ms: int | None = None
        self._written = 0
        self._progress = Progress("starting", 0, 0.0, 0)

    @property
    def progress(self) -> Progress:
        return self._progress

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. Whatever goes wrong is logged, counted and tried again from the positions in Redis."""
        while not stop.is_set():
            try:
                self._feed(stop)
            except Exception as error:
                DEGRADED.labels("ranker", "feature feed").inc()
                log.error("feature feed starts again", error=f"{type(error).__name__}: {error}")
                self._tell(f"starting again after {type(error).__name__}: {error}", None)
                stop.wait(REOPEN_AFTER_S)

    def _feed(self, stop: threading.Event) -> None:
        source = self._open_source(Rebalance(self._on_assigned, self._on_revoked))
        self._assigned, self._placed, self._held = {}, False, []
        source.pause()
        try:
            while not stop.is_set():
                self.step(source)
        finally:
            source.close()

    def step(self, source: Source) -> None:
        """One turn of the loop."""
        topic_log = source.log_name()
        if topic_log is None:
            self._tell("waiting for Kafka", None)
            return
        records = source.poll(BATCH, POLL_S)
        if self._placed:  # otherwise they come again once placed
            self._held += records
        try:
            if not self._placed:
                self._place(source, topic_log)
            elif self._held:
                self._write(source, topic_log)
            elif self._clock() - self._checked_at >= CHECK_EVERY_S:
                self._check(topic_log)
        except PositionsMoved as moved:
            log.warning("feature store goes back to where Redis stands", reason=str(moved))
            source.pause()
            self._placed, self._held = False, []
        except RedisAway as error:
            DEGRADED.labels("ranker", "feature feed").inc()
            source.pause()
            self._tell(f"waiting for Redis: {error}", source)
            return
        except RegistryAway as error:
            DEGRADED.labels("ranker", "feature feed").inc()
            source.pause()
            self._tell(f"waiting for the schema registry: {error}", source)
            return
        self._tell("reading" if self._placed else "waiting for partitions", source)

    def _place(self, source: Source, topic_log: str) -> None:
        if not self._assigned:
            return
        held = self._store.positions()
        places = {partition: held.get(f"{topic_log}/{partition}") for partition in self._assigned}
        if source.seek(places):
            self._assigned.update(places)
            self._placed, self._held = True, []
            self._checked_at = self._clock()
            source.resume()

    def _write(self, source: Source, topic_log: str) -> None:
        after: dict[int, int | None] = {}
        updates = []
        for record in self._held:
            after[record.partition] = record.offset + 1
            update = self._decoded(record)
            if update is not None:
                updates.append(update)
        self._store.write(
            Batch(
                updates=updates,
                before={f"{topic_log}/{partition}": self._assigned[partition] for partition in after},
                after={f"{topic_log}/{partition}": offset for partition, offset in after.items() if offset is not None},
            )
        )
        self._assigned.update(after)
        self._written += len(updates)
        self._prepare(updates)
        self._last_timestamp_ms = self._held[-1].timestamp_ms
        self._held = []
        self._checked_at = self._clock()
        source.resume()
        source.commit({partition: offset for partition, offset in after.items() if offset is not None})

    def _prepare(self, updates: Sequence[IndexUpdate]) -> None:
        """For the language model. What fails here is done again by the query that needs it, and tells there."""
        if self._ingest is None:
            return
        try:
            self._ingest(updates)
        except Exception as error:
            DEGRADED.labels("ranker", "features: not made ready for the language model").inc()
            log.warning("index updates not made ready for the language model", count=len(updates), error=str(error))

    def _decoded(self, record: Record) -> IndexUpdate | None:
        if record.value is None:
            return None
        try:
            return unframed(self._codec, record.value)
        except WireError as error:
            DEGRADED.labels("ranker", "features: undecodable update").inc()
            log.warning("index update skipped", partition=record.partition, offset=record.offset, error=str(error))
            return None

    def _check(self, topic_log: str) -> None:
        held = self._store.positions()
        for partition, offset in self._assigned.items():
            found = held.get(f"{topic_log}/{partition}")
            if found != offset:
                raise PositionsMoved(f"{topic_log}/{partition}", offset, found)
        self._checked_at = self._clock()

    def _tell(self, state: str, source: Source | None) -> None:
        ends = source.ends() if source is not None else {}
        lag = sum(max(0, end - (self._assigned.get(partition) or 0)) for partition, end in ends.items())
        seconds = 0.0
        if lag and self._last_timestamp_ms is not None:
            seconds = max(0.0, (self._now_ms() - self._last_timestamp_ms) / 1000)
        self._progress = Progress(state, lag, seconds, self._written)

    def _on_assigned(self, partitions: Sequence[int]) -> None:
        self._assigned = dict.fromkeys(partitions)
        self._placed, self._held = False, []

    def _on_revoked(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            self._assigned.pop(partition, None)
        self._placed, self._held = False, []
