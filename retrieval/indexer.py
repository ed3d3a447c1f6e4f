"""Records of index.update.v1 into the store, and how far that has come. No Kafka, no clock of its own.

    1. decode    what is no update goes to the dead letters, with its bytes
    2. word      a posting without a vector gets the lexical plane of its words, so that words find it
    3. apply     the rest is one epoch; what the store refuses goes to the dead letters too
    4. account   offsets move on, freshness is observed, and what was left out is counted

Invariant: `offsets` covers exactly what has been applied or dead-lettered, so a snapshot taken between two calls of
`take` may stand for the log below them. One thread calls everything here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import structlog

from penstock.infra import tracing
from penstock.infra.telemetry import DEGRADED, FRESHNESS_SECONDS, ids_of
from penstock.retrieval.encoder.weights import EncoderWeightsError
from penstock.retrieval.feed import Polled, Record
from penstock.retrieval.lexicon import Lexicon
from penstock.retrieval.store.records import Applied
from penstock.retrieval.store.store import Store
from penstock.schemas.errors import MalformedRecord, WireError
from penstock.schemas.events import IndexOp, IndexUpdate
from penstock.schemas.wire import Codec

log = structlog.get_logger(role="retrieval")

DeadLetter = Callable[[Record, Exception, int], None]  # record, what is wrong with it, failed at (epoch ms)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the store is behind its log."""

    offsets: int
    seconds: float  # since the newest applied record was written, while behind; 0 when nothing is left to read


@dataclass(slots=True)
class Indexer:
    store: Store
    codec: Codec[IndexUpdate]
    dead_letter: DeadLetter
    lexicon: Lexicon = field(default_factory=Lexicon)
    offsets: dict[int, int] = field(default_factory=dict)  # partition -> next offset
    targets: dict[int, int] | None = None  # how long the log was when this process began to read it; None: not yet
    caught_up: bool = False  # once true, it stays so
    refused: int = 0
    last_refusal: str = ""
    _newest_ms: int | None = None

    def begin(self, highs: Mapping[int, int]) -> None:
        """How long the log is: the store has caught up when it covers that. Later calls change nothing."""
        if self.targets is None:
            self.targets = dict(highs)
            self._check()

    def take(self, polled: Polled, now_ms: int) -> None:
        """Applies what was polled. An exception other than a record's own fault leaves everything as it was."""
        updates, origins, wrong = self._decoded(polled.records)
        if updates:
            updates = [self._worded(update) for update in updates]
            self._apply(updates, origins, wrong, now_ms)
        for record, error in wrong:
            self.refused += 1
            self.last_refusal = str(error)
            self.dead_letter(record, error, now_ms)
        reached: dict[int, int] = {}
        for record in polled.records:
            reached[record.partition] = record.offset + 1
            if record.timestamp_ms is not None:
                self._newest_ms = record.timestamp_ms
        for partition, end in polled.ends.items():  # the end may have been met before the newest record was there
            reached[partition] = max(end, reached.get(partition, end))
        self.offsets |= reached
        self._check()

    def lag(self, highs: Mapping[int, int], now_ms: int) -> Lag:
        """`highs`: the next offset to be written, by partition."""
        behind = sum(max(0, high - self.offsets.get(partition, 0)) for partition, high in highs.items())
        if not behind or self._newest_ms is None:
            return Lag(behind, 0.0)
        return Lag(behind, max(0.0, (now_ms - self._newest_ms) / 1000))

    def _decoded(self, records: list[Record]) -> tuple[list[IndexUpdate], list[Record], list[tuple[Record, Exception]]]:
        updates: list[IndexUpdate] = []
        origins: list[Record] = []
        wrong: list[tuple[Record, Exception]] = []
        for record in records:
            try:
                if record.value is None:
                    raise MalformedRecord(
                        "no value: a deletion here is an update with op DELETE, not a Kafka tombstone"
                    )
                updates.append(self.codec.decode(record.value))
                origins.append(record)
            except WireError as error:
                wrong.append((record, error))
        return updates, origins, wrong

    def _worded(self, update: IndexUpdate) -> IndexUpdate:
        if update.op is not IndexOp.UPSERT or update.vector is not None:
            return update
        try:
            vector = self.lexicon.row(update, self.store.space_id)
        except EncoderWeightsError as error:  # filters find it all the same
            DEGRADED.labels("retrieval", "posting without words").inc()
            log.error("posting found by filters only", posting_id=update.posting_id, error=str(error))
            return update
        DEGRADED.labels("retrieval", "posting by words alone").inc()
        return replace(update, vector=vector)

    def _apply(
        self,
        updates: list[IndexUpdate],
        origins: list[Record],
        wrong: list[tuple[Record, Exception]],
        now_ms: int,
    ) -> None:
        try:
            batches = [(updates, origins, self.store.apply(updates, now_ms=now_ms))]
        except MemoryError:
            raise  # nobody's fault in particular: the loop says so and tries again
        except Exception as error:  # one record is worse than the rules knew: find it, keep its fellows
            DEGRADED.labels("retrieval", "batch applied one by one").inc()
            log.error("batch failed, applying one by one", error=f"{type(error).__name__}: {error}")
            batches = []
            for update, record in zip(updates, origins, strict=True):
                try:
                    batches.append(([update], [record], self.store.apply([update], now_ms=now_ms)))
                except MemoryError:
                    raise
                except Exception as fault:
                    wrong.append((record, fault))
        for batch, records, applied in batches:
            wrong.extend((records[refusal.position], refusal.error) for refusal in applied.refused)
            self._account(batch, records, applied)

    def _account(self, updates: list[IndexUpdate], records: list[Record], applied: Applied) -> None:
        for position, reason in applied.without_vector:
            DEGRADED.labels("retrieval", "vector refused").inc()
            log.warning("vector refused", reason=reason, **ids_of(updates[position]))
        if not self.caught_up:
            return  # a replay says nothing about freshness
        for position in applied.accepted:
            update = updates[position]
            if update.op is not IndexOp.EXPIRE:
                seconds = max(0, applied.published_at - update.produced_at) / 1000
                FRESHNESS_SECONDS.labels("searchable" if update.revision <= 0 else "refined").observe(seconds)
            if tracing.exporting():
                began = records[position].timestamp_ms or update.produced_at
                ids = {"posting_id": update.posting_id, "version": update.version, "revision": update.revision}
                tracing.passed("index.apply", update.trace, began, applied.published_at, **ids)

    def _check(self) -> None:
        if not self.caught_up and self.targets is not None:
            self.caught_up = all(self.offsets.get(partition, 0) >= high for partition, high in self.targets.items())
