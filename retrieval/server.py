"""`penstock serve retrieval`: one shard behind gRPC.

    gRPC Search | Get | Holds | Explain ──> the newest epoch of the postings
    gRPC Percolate | Standing           ──> the newest epoch of the standing queries
    index.update.v1 ──> a shard's loop  ──> epochs of postings                    (this process's main thread)
    alerts.query.v1 ──> a shard's loop  ──> epochs of standing queries            (a thread beside it)

Until a shard has caught up with its log, calls that read it are UNAVAILABLE; afterwards they are answered, and a store
that cannot follow its log says so in `degraded`. The role is ready when both have caught up. A scan holds one of
`threads` places; waiting for a version holds none.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
import structlog
import torch

from penstock.infra.settings import Settings
from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.retrieval import kinds
from penstock.retrieval.client import MIN_VERSION_TIMED_OUT
from penstock.retrieval.dead_letters import DeadLetters
from penstock.retrieval.feed import KafkaLog, Source
from penstock.retrieval.lexicon import Lexicon
from penstock.retrieval.percolate.service import PercolationService, StandingShard
from penstock.retrieval.shard import Letters, Shard, answering
from penstock.retrieval.store.records import StoreCounts
from penstock.retrieval.store.store import Store
from penstock.schemas import grpc_avro, topics
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import IndexUpdate, MinVersion
from penstock.schemas.grpc_avro import Refused
from penstock.schemas.rpc import (
    ClauseEffect,
    ExplainReply,
    ExplainRequest,
    GetReply,
    GetRequest,
    HoldsReply,
    HoldsRequest,
    Retrieval,
    RoleStatus,
    Row,
    RowState,
    SearchReply,
    SearchRequest,
    StatusRequest,
)

log = structlog.get_logger(role="retrieval")

WORKERS = 24  # gRPC threads
WAITERS = 12  # of them that may wait for a version at a time
MAX_IDS = 10_000
MAX_CLAUSES = 256
OTHER_SPACE = "some postings have a vector of another space and are found by filters only"

PostingsShard = Shard[IndexUpdate, Store, StoreCounts]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class RetrievalService:
    """The calls. Holds no state but its bounds; called from gRPC's threads."""

    def __init__(
        self, shard: PostingsShard, standing: StandingShard, name: str, threads: int, lexicon: Lexicon | None = None
    ) -> None:
        self._shard = shard
        self._standing = standing
        self._name = name
        self._lexicon = lexicon or Lexicon()
        self._scans = threading.BoundedSemaphore(max(1, threads))
        self.percolation = PercolationService(standing, name, self._scans)
        self._waiters = threading.BoundedSemaphore(WAITERS)

    def search(self, request: SearchRequest, context: grpc.ServicerContext) -> SearchReply:
        store, degraded = self._fit_store()
        degraded += self._await(store, request.min_version, request.timeout_ms, context)
        began = time.perf_counter()
        with self._scans:
            vector = request.vector
            if vector is None and request.words is not None:
                vector = self._lexicon.query(request.words, store.space_id)
            result = store.search(
                vector,
                request.filters,
                request.k,
                now_ms=now_ms(),
                tenant=request.tenant,
                at_epoch=request.at_epoch,
            )
        STAGE_SECONDS.labels("retrieval", "search").observe(time.perf_counter() - began)
        if vector is not None and self._shard.view.counts.vectors_refused:
            degraded.append(_counted(OTHER_SPACE))
        return SearchReply(
            hits=result.hits, total=result.total, epoch=result.epoch, shard=self._name, degraded=tuple(degraded)
        )

    def get(self, request: GetRequest, context: grpc.ServicerContext) -> GetReply:
        if len(request.posting_ids) > MAX_IDS:
            raise InvalidRecord("posting_ids", f"{len(request.posting_ids)} ids", f"at most {MAX_IDS} a call")
        store, degraded = self._fit_store()
        degraded += self._await(store, request.min_version, request.timeout_ms, context)
        rows = store.get(request.posting_ids, now_ms=now_ms())
        if request.tenant is not None:
            rows = tuple(_of_tenant(row, request.tenant) for row in rows)
        return GetReply(rows=rows, shard=self._name, degraded=tuple(degraded))

    def holds(self, request: HoldsRequest, _context: grpc.ServicerContext) -> HoldsReply:
        if len(request.clauses) > MAX_CLAUSES:
            raise InvalidRecord("clauses", f"{len(request.clauses)} clauses", f"at most {MAX_CLAUSES} a call")
        store, _ = self._fit_store()
        with self._scans:
            moment = now_ms()
            held = tuple(store.holds(clause, now_ms=moment, tenant=request.tenant) for clause in request.clauses)
        return HoldsReply(held=held)

    def explain(self, request: ExplainRequest, _context: grpc.ServicerContext) -> ExplainReply:
        store, degraded = self._fit_store()
        with self._scans:
            said = store.explain(request.filters, now_ms=now_ms(), tenant=request.tenant)
        return ExplainReply(
            filter=said.filter,
            postings=said.rows,
            passed=said.passed,
            clauses=tuple(ClauseEffect(clause=c.clause, passed=c.passed, missing=c.missing) for c in said.clauses),
            shard=self._name,
            degraded=tuple(degraded),
        )

    def status(self, _request: StatusRequest, _context: grpc.ServicerContext) -> RoleStatus:
        """Ready means that the loop moves, the log is followed, and a read of the store has just worked."""
        reasons = [self._shard.not_ready()]
        if standing := self._standing.not_ready():
            reasons.append(f"standing queries: {standing}")
        reason = "; ".join(filter(None, reasons))
        store, view = self._shard.store, self._shard.view
        began = time.perf_counter()
        store.search(None, None, 1, now_ms=now_ms())
        counts = view.counts
        age = (now_ms() - view.snapshot_at_ms) / 1000 if view.snapshot_at_ms else -1.0
        return RoleStatus(
            role="retrieval",
            ready=not reason,
            reason=reason,
            numbers={
                "rows": counts.live,
                "tombstones": counts.tombstones,
                "dead_rows_held": counts.held_dead,
                "capacity_rows": counts.capacity,
                "rows_without_vector": counts.without_vector,
                "vectors_refused": counts.vectors_refused,
                "stale_updates": counts.stale,
                "updates_refused": view.refused,
                "lag_offsets": view.lag.offsets,
                "lag_seconds": view.lag.seconds,
                "memory_bytes": counts.nbytes,
                "snapshot_age_seconds": age,
                "probe_ms": 1000 * (time.perf_counter() - began),
                **self.percolation.numbers(),
            },
            texts={
                "shard": self._name,
                "epoch": str(store.epoch),
                "space_id": store.space_id,
                "snapshot": view.snapshot,
                "last_refusal": view.last_refusal,
                "problems": "; ".join(view.problems),
                **self.percolation.texts(),
            },
        )

    def _fit_store(self) -> tuple[Store, list[str]]:
        """The store, and what its answers lack. Raises NotReady."""
        return answering(self._shard, self._name)

    def _await(
        self, store: Store, wanted: MinVersion | None, timeout_ms: int, context: grpc.ServicerContext
    ) -> Sequence[str]:
        if wanted is None:
            return ()
        if not self._waiters.acquire(blocking=False):
            raise Refused(f"{self._name}: {WAITERS} calls wait for a version already; try again")
        try:
            left = context.time_remaining()
            seconds = timeout_ms / 1000 if left is None else min(timeout_ms / 1000, max(0.0, left - 0.1))
            arrived = store.await_version(wanted.posting_id, wanted.version, seconds)
        finally:
            self._waiters.release()
        return () if arrived else (_counted(MIN_VERSION_TIMED_OUT),)


def _of_tenant(row: Row, tenant: str) -> Row:
    """The row, or its absence where it is another tenant's."""
    if row.update is None or row.update.tenant == tenant:
        return row
    return Row(posting_id=row.posting_id, state=RowState.ABSENT)


def _counted(what: str, why: str = "") -> str:
    DEGRADED.labels("retrieval", what).inc()
    return f"{what}: {why}" if why else what


@dataclass(frozen=True, slots=True)
class Log:
    """A log to follow, and where its refused records go."""

    source: Source
    letters: Letters


def serve(settings: Settings, stop: threading.Event) -> None:
    """Blocks until `stop` is set, then writes the last snapshots. Raises PortInUse."""
    own = settings.retrieval

    def log_of(topic: topics.Topic) -> Log:
        source = KafkaLog(settings.kafka, topic.name, own.partitions, f"retrieval-{own.shard}")
        return Log(source, DeadLetters(settings.kafka, topic))

    serve_from(log_of(topics.INDEX), log_of(topics.STANDING_QUERIES), settings, stop)


def serve_from(updates: Log, queries: Log, settings: Settings, stop: threading.Event) -> None:
    """The same over any logs."""
    own = settings.retrieval
    torch.set_num_threads(own.threads)
    folder = settings.data_dir / "retrieval" / own.shard
    lexicon = kinds.lexicon_of(settings)
    shard = Shard(own, folder, updates.source, updates.letters, kinds.postings(settings, lexicon), now_ms)
    standing = Shard(
        own, folder / "standing", queries.source, queries.letters, kinds.standing_queries(settings), now_ms
    )
    service = RetrievalService(shard, standing, own.shard, own.threads, lexicon)
    listener = grpc_avro.serve(
        own.listen,
        {
            Retrieval.SEARCH: service.search,
            Retrieval.GET: service.get,
            Retrieval.HOLDS: service.holds,
            Retrieval.EXPLAIN: service.explain,
            Retrieval.PERCOLATE: service.percolation.percolate,
            Retrieval.STANDING: service.percolation.standing,
            Retrieval.STATUS: service.status,
        },
        workers=WORKERS,
    )

    def ready() -> None:
        gc.collect()
        gc.freeze()  # what was loaded stays: later collections need not look at it
        rows, queries = shard.store.counts().live, standing.store.counts().live
        log.info("ready", shard=own.shard, listen=own.listen, rows=rows, standing_queries=queries)

    both = _Both(ready)
    beside = _Beside(standing, stop, both)
    try:
        beside.start()
        shard.run(stop, both)
    finally:
        stop.set()
        beside.join()
        listener.stop(1.0).wait()
    if beside.failure is not None:
        raise beside.failure


class _Both:
    """Calls on once both loops have called."""

    def __init__(self, ready: Callable[[], None]) -> None:
        self._ready = ready
        self._lock = threading.Lock()
        self._left = 2

    def __call__(self) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._ready()


class _Beside(threading.Thread):
    """The loop of the standing queries. If it cannot go on the process must not: it would miss alerts."""

    def __init__(self, shard: StandingShard, stop: threading.Event, ready: Callable[[], None]) -> None:
        super().__init__(name="standing")
        self._shard = shard
        self._end = stop
        self._tell_ready = ready
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            self._shard.run(self._end, self._tell_ready)
        except BaseException as error:
            self.failure = error
            self._end.set()
