"""Records of a log into the store they fill, and how far that has come. No Kafka, no clock of its own.

    1. decode    what is no such record goes to the dead letters, with its bytes
    2. prepare   what this kind of record needs before it can be applied (`prepared`)
    3. apply     the rest is one epoch; what the store refuses goes to the dead letters too
    4. account   offsets move on, and what this kind of record has to tell of a batch is told (`account`)

What the store has no room for is nobody's fault and no dead letter: `take` raises OutOfRoom, offsets stay, and the same
records come again, until there is room for them. What fitted has been applied, and is then a repeat.

Invariant: `offsets` covers exactly what has been applied or dead-lettered, so a snapshot taken between two calls of
`take` may stand for the log below them. One thread calls everything here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import structlog

from penstock.infra.telemetry import DEGRADED
from penstock.retrieval.feed import Polled, Record
from penstock.retrieval.store.errors import OutOfRoom
from penstock.retrieval.store.records import Applied
from penstock.schemas.errors import MalformedRecord, WireError
from penstock.schemas.wire import Codec

log = structlog.get_logger(role="retrieval")

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)

DeadLetter = Callable[[Record, Exception, int], None]  # record, what is wrong with it, failed at (epoch ms)


@dataclass(frozen=True, slots=True)
class Lag:
    """How far the store is behind its log."""

    offsets: int
    seconds: float  # since the newest applied record was written, while behind; 0 when nothing is left to read


class Fillable(Protocol[R_contra]):
    """A store as its log sees it."""

    def apply(self, updates: Sequence[R_contra], *, now_ms: int) -> Applied:
        """Publishes a batch as one epoch; a record that is refused does not hold back its fellows."""


class Follower(Generic[R]):
    """Fills `store`. As it stands, records need no preparation and have nothing to tell."""

    def __init__(self, store: Fillable[R], codec: Codec[R], dead_letter: DeadLetter) -> None:
        self._target = store
        self._codec = codec
        self._dead_letter = dead_letter
        self._newest_ms: int | None = None
        self.offsets: dict[int, int] = {}  # partition -> next offset
        self.targets: dict[int, int] | None = None  # how long the log was when we began to read it; None: not yet
        self.caught_up = False  # once true, it stays so
        self.refused = 0
        self.last_refusal = ""

    def prepared(self, updates: list[R]) -> list[R]:
        """The records as the store should see them, one for each."""
        return updates

    def account(self, updates: list[R], records: list[Record], applied: Applied) -> None:
        """What became of a batch."""

    def begin(self, highs: Mapping[int, int]) -> None:
        """How long the log is: the store has caught up when it covers that. Later calls change nothing."""
        if self.targets is None:
            self.targets = dict(highs)
            self._check()

    def take(self, polled: Polled, now_ms: int) -> None:
        """Applies what was polled. An exception other than a record's own fault leaves offsets as they were."""
        updates, origins, wrong = self._decoded(polled.records)
        if updates:
            self._apply(self.prepared(updates), origins, wrong, now_ms)
        for record, error in wrong:
            self.refused += 1
            self.last_refusal = str(error)
            self._dead_letter(record, error, now_ms)
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

    def _decoded(self, records: list[Record]) -> tuple[list[R], list[Record], list[tuple[Record, Exception]]]:
        updates: list[R] = []
        origins: list[Record] = []
        wrong: list[tuple[Record, Exception]] = []
        for record in records:
            try:
                if record.value is None:
                    raise MalformedRecord("no value: a deletion here is a record with op DELETE, not a Kafka tombstone")
                updates.append(self._codec.decode(record.value))
                origins.append(record)
            except WireError as error:
                wrong.append((record, error))
        return updates, origins, wrong

    def _apply(
        self,
        updates: list[R],
        origins: list[Record],
        wrong: list[tuple[Record, Exception]],
        now_ms: int,
    ) -> None:
        try:
            batches = [(updates, origins, self._target.apply(updates, now_ms=now_ms))]
        except MemoryError:
            raise  # nobody's fault in particular: the loop says so and tries again
        except Exception as error:  # one record is worse than the rules knew: find it, keep its fellows
            DEGRADED.labels("retrieval", "batch applied one by one").inc()
            log.error("batch failed, applying one by one", error=f"{type(error).__name__}: {error}")
            batches = []
            for update, record in zip(updates, origins, strict=True):
                try:
                    batches.append(([update], [record], self._target.apply([update], now_ms=now_ms)))
                except MemoryError:
                    raise
                except Exception as fault:
                    wrong.append((record, fault))
        for batch, records, applied in batches:
            wrong.extend((records[refusal.position], refusal.error) for refusal in applied.refused)
            self.account(batch, records, applied)
        for _, why in wrong:
            if isinstance(why, OutOfRoom):
                DEGRADED.labels("retrieval", "out of room").inc()
                raise why

    def _check(self) -> None:
        if not self.caught_up and self.targets is not None:
            self.caught_up = all(self.offsets.get(partition, 0) >= high for partition, high in self.targets.items())
