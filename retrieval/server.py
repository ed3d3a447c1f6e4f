"""`penstock serve retrieval`: one shard behind gRPC.

    gRPC Search | Get | Holds | Explain | Status ──> the newest epoch of the store
    index.update.v1 ──> the shard's loop ──> epochs                    (this process's main thread)

Until the shard has caught up with its log, searches are UNAVAILABLE; afterwards they are answered, and a store that
cannot follow the log says so in `degraded`. A scan holds one of `threads` places; waiting for a version holds none.
"""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence

import grpc
import structlog
import torch

from penstock.infra.settings import Settings
from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.retrieval.client import MIN_VERSION_TIMED_OUT
from penstock.retrieval.dead_letters import DeadLetters
from penstock.retrieval.feed import KafkaLog, Source
from penstock.retrieval.shard import Letters, Shard
from penstock.retrieval.store.store import Store
from penstock.schemas import grpc_avro, topics
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import MinVersion
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import NotReady, Refused
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


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class RetrievalService:
    """The calls. Holds no state but its bounds; called from gRPC's threads."""

    def __init__(self, shard: Shard, name: str, threads: int) -> None:
        self._shard = shard
        self._name = name
        self._scans = threading.BoundedSemaphore(max(1, threads))
        self._waiters = threading.BoundedSemaphore(WAITERS)

    def search(self, request: SearchRequest, context: grpc.ServicerContext) -> SearchReply:
        store, degraded = self._fit_store()
        degraded += self._await(store, request.min_version, request.timeout_ms, context)
        began = time.perf_counter()
        with self._scans:
            result = store.search(
                request.vector,
                request.filters,
                request.k,
                now_ms=now_ms(),
                tenant=request.tenant,
                at_epoch=request.at_epoch,
            )
        STAGE_SECONDS.labels("retrieval", "search").observe(time.perf_counter() - began)
        if request.vector is not None and self._shard.view.counts.vectors_refused:
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
        reason = self._shard.not_ready()
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
            },
            texts={
                "shard": self._name,
                "epoch": str(store.epoch),
                "space_id": store.space_id,
                "snapshot": view.snapshot,
                "last_refusal": view.last_refusal,
                "problems": "; ".join(view.problems),
            },
        )

    def _fit_store(self) -> tuple[Store, list[str]]:
        """The store, and what its answers lack. Raises NotReady."""
        reason = self._shard.not_ready()
        if reason and not self._shard.may_answer():
            raise NotReady(f"{self._name}: {reason}")
        return self._shard.store, [_counted("stale", reason)] if reason else []

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


def serve(settings: Settings, stop: threading.Event) -> None:
    """Blocks until `stop` is set, then writes a last snapshot. Raises PortInUse."""
    own = settings.retrieval
    source = KafkaLog(settings.kafka, topics.INDEX.name, own.partitions, f"retrieval-{own.shard}")
    serve_from(source, DeadLetters(settings.kafka), settings, stop)


def serve_from(source: Source, letters: Letters, settings: Settings, stop: threading.Event) -> None:
    """The same over any log."""
    own = settings.retrieval
    torch.set_num_threads(own.threads)

    def make_store(first_epoch: int) -> Store:
        return Store(
            capacity=own.initial_rows,
            first_epoch=first_epoch,
            tombstone_window_ms=settings.postings.tombstone_window_ms,
            hold_ms=own.hold_epochs_ms,
        )

    shard = Shard(
        own,
        settings.data_dir / "retrieval" / own.shard,
        source,
        letters,
        topic_codec(topics.INDEX, settings.kafka.schema_registry),
        make_store,
        now_ms,
    )
    service = RetrievalService(shard, own.shard, own.threads)
    listener = grpc_avro.serve(
        own.listen,
        {
            Retrieval.SEARCH: service.search,
            Retrieval.GET: service.get,
            Retrieval.HOLDS: service.holds,
            Retrieval.EXPLAIN: service.explain,
            Retrieval.STATUS: service.status,
        },
        workers=WORKERS,
    )

    def ready() -> None:
        gc.collect()
        gc.freeze()  # what was loaded stays: later collections need not look at it
        log.info("ready", shard=own.shard, listen=own.listen, rows=shard.store.counts().live)

    try:
        shard.run(stop, ready)
    finally:
        listener.stop(1.0).wait()
