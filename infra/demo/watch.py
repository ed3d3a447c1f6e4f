"""Follows a run from outside, as any consumer could: rows from the retrieval shards, everything else from Kafka.

`Watch` owns one thread; what it has seen is under one lock, so that every method may be called from any thread.
A role that does not answer is waited for: the last trouble is kept for the view and counted for the report.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import grpc

from penstock.infra.kafka_clients import Tail, timestamp_of
from penstock.infra.settings import Settings
from penstock.infra.telemetry import DEGRADED
from penstock.retrieval.client import RetrievalClient
from penstock.schemas import topics
from penstock.schemas.events import Alert, DeadLetter, IndexOp, IndexUpdate, RankResult, StandingQuery
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import GetRequest, Row
from penstock.schemas.wire import Codec, codec

INTERVAL_S = 0.25
ROWS_A_LOOK = 200  # the oldest that are still waited for: looking must not cost what it measures
ROWS_A_CALL = 200
CALL_TIMEOUT_S = 10.0
RECORDS_A_LOOK = 5_000


@dataclass(frozen=True, slots=True)
class Seen:
    """A moment of the run."""

    searchable: int  # ids whose newest published version is visible
    waiting: int
    letters: int
    results: int
    alerts: int
    freshness_ms: tuple[float, ...]  # one a version seen, from its Kafka timestamp until it was searchable
    trouble: str | None  # why the last look failed, while it does


class Freshness:
    """One sample a version that was asked for, as it was first seen. Its owner keeps it under a lock."""

    def __init__(self) -> None:
        self._versions: set[tuple[str, int]] = set()  # a row of an earlier run is not this one's
        self._samples: dict[tuple[str, int], float] = {}

    def expect(self, posting_id: str, version: int) -> None:
        self._versions.add((posting_id, version))

    def see(self, rows: Iterable[Row]) -> None:
        for row in rows:
            fresh = freshness_ms(row)
            if fresh is not None and row.update is not None:
                key = (row.posting_id, row.update.version)
                if key in self._versions:
                    self._samples.setdefault(key, fresh)

    def samples(self) -> tuple[float, ...]:
        """Milliseconds, in the order in which the versions were seen."""
        return tuple(self._samples.values())


class Watch:
    """Use in a `with`: topics are read from their ends at entry, so make it before the first event is published."""

    def __init__(self, settings: Settings, retrieval: RetrievalClient, clock: Callable[[], int]) -> None:
        self._retrieval = retrieval
        self._clock = clock  # epoch milliseconds
        self._letters_tail = Tail(settings.kafka, [topics.POSTINGS.dead_letters])
        self._results_tail = Tail(settings.kafka, [topics.RANK_RESULTS.name])
        self._alerts_tail = Tail(settings.kafka, [topics.ALERTS.name])
        # What the alerts are judged by: every update that says `percolate`, and the queries they met.
        self._stream_tail = Tail(settings.kafka, [topics.INDEX.name, topics.STANDING_QUERIES.name])
        # Dead letters are single-object encoded everywhere; the others are framed as their topics are here.
        registry = settings.kafka.schema_registry
        self._result_codec: Codec[RankResult] = topic_codec(topics.RANK_RESULTS, registry)
        self._alert_codec: Codec[Alert] = topic_codec(topics.ALERTS, registry)
        self._update_codec: Codec[IndexUpdate] = topic_codec(topics.INDEX, registry)
        self._query_codec: Codec[StandingQuery] = topic_codec(topics.STANDING_QUERIES, registry)
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, int] = OrderedDict()
        self._searchable: set[str] = set()
        self._freshness = Freshness()
        self._letters: list[DeadLetter] = []
        self._results: dict[str, tuple[int, RankResult]] = {}
        self._alerts: list[Alert] = []
        self._percolated: list[IndexUpdate] = []
        self._standing: list[StandingQuery] = []
        self._trouble: str | None = None
        self._failure: Exception | None = None
        self.interruptions: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(CALL_TIMEOUT_S + 1)
        self._letters_tail.close()
        self._results_tail.close()
        self._alerts_tail.close()
        self._stream_tail.close()

    def track(self, posting_id: str, version: int) -> None:
        """From now on look for this version of this posting (an older one is no longer looked for)."""
        with self._lock:
            self._waiting[posting_id] = version
            self._waiting.move_to_end(posting_id)
            self._freshness.expect(posting_id, version)
            self._searchable.discard(posting_id)

    def start_counting(self) -> None:
        """Forget what was tracked so far (the probes): the counts and samples of `seen` begin here."""
        with self._lock:
            self._waiting.clear()
            self._searchable.clear()
            self._freshness = Freshness()

    def seen(self) -> Seen:
        """Raises what ended the watching, if anything did."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            return Seen(
                searchable=len(self._searchable),
                waiting=len(self._waiting),
                letters=len(self._letters),
                results=len(self._results),
                alerts=len({alert.alert_id for alert in self._alerts}),
                freshness_ms=self._freshness.samples(),
                trouble=self._trouble,
            )

    def letters(self) -> list[DeadLetter]:
        with self._lock:
            return list(self._letters)

    def results(self) -> dict[str, tuple[int, RankResult]]:
        """By request id: the result's Kafka timestamp, and the result."""
        with self._lock:
            return dict(self._results)

    def alerts(self) -> list[Alert]:
        """Everybody's, repeats included, in the order of the feed."""
        with self._lock:
            return list(self._alerts)

    def percolated(self) -> list[IndexUpdate]:
        """The index updates that alerts look at."""
        with self._lock:
            return list(self._percolated)

    def standing(self) -> list[StandingQuery]:
        with self._lock:
            return list(self._standing)

    def rows(self, posting_ids: Iterable[str]) -> Mapping[str, Row] | None:
        """The rows of these ids now; None while retrieval does not answer. What they tell of freshness is kept."""
        ids, rows = list(posting_ids), {}
        for start in range(0, len(ids), ROWS_A_CALL):
            request = GetRequest(posting_ids=tuple(ids[start : start + ROWS_A_CALL]))
            try:
                reply = self._retrieval.get(request, timeout=CALL_TIMEOUT_S)
            except CallError as error:
                if error.code is grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                self._interrupted(str(error))  # a role that is killed ends its calls in more ways than one
                return None
            rows.update({row.posting_id: row for row in reply.rows})
        with self._lock:
            self._trouble = None
            self._freshness.see(rows.values())
        return rows

    def _interrupted(self, why: str) -> None:
        DEGRADED.labels("demo", "retrieval does not answer").inc()
        with self._lock:
            self._trouble = why
            self.interruptions[why] = self.interruptions.get(why, 0) + 1

    def _run(self) -> None:
        try:
            while not self._stop.wait(INTERVAL_S):
                self._look()
        except Exception as error:  # a thread's error has no caller: `seen` raises it in the owner's thread
            self._failure = error

    def _look(self) -> None:
        letters = [codec(DeadLetter).decode_unbounded(m.value() or b"") for m in self._letters_tail.poll(0.0)]
        results = [
            (timestamp_of(m) or self._clock(), self._result_codec.decode_unbounded(m.value() or b""))
            for m in self._results_tail.poll(0.0)
        ]
        alerts = [
            self._alert_codec.decode_unbounded(m.value() or b"") for m in self._alerts_tail.poll(0.0, RECORDS_A_LOOK)
        ]
        percolated, standing = [], []
        for m in self._stream_tail.poll(0.0, RECORDS_A_LOOK):
            if m.topic() == topics.INDEX.name:
                update = self._update_codec.decode_unbounded(m.value() or b"")
                if update.percolate:
                    percolated.append(update)
            else:
                standing.append(self._query_codec.decode_unbounded(m.value() or b""))
        with self._lock:
            self._alerts += alerts
            self._percolated += percolated
            self._standing += standing
            self._letters += letters
            for at, result in results:
                self._results.setdefault(result.request_id, (at, result))  # a replayed request answers twice
            looked_for = dict(list(self._waiting.items())[:ROWS_A_LOOK])
        if looked_for:
            rows = self.rows(looked_for)
            if rows is not None:
                self._note(looked_for, rows)

    def _note(self, looked_for: Mapping[str, int], rows: Mapping[str, Row]) -> None:
        with self._lock:
            for posting_id, version in looked_for.items():
                row = rows.get(posting_id)
                if row is None or row.update is None or row.update.version < version:
                    if posting_id in self._waiting:
                        self._waiting.move_to_end(posting_id)  # what does not come must not hide what does
                    continue
                if self._waiting.get(posting_id) == version:
                    del self._waiting[posting_id]
                    self._searchable.add(posting_id)


def freshness_ms(row: Row) -> float | None:
    """From the posting event's Kafka timestamp until its version was searchable, for versions of the fast lane.

    Those have revision 0, or -1 where models were too late for a vector; the slow lane's have higher ones.
    """
    update = row.update
    if update is None or row.searchable_at is None or update.op is not IndexOp.UPSERT or update.revision > 0:
        return None
    return float(row.searchable_at - update.produced_at)


def percentile(values: Iterable[float], share: float) -> float | None:
    """The value below which `share` of the values lie (nearest rank); None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None
