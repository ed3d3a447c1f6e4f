"""`penstock serve retrieval`: one shard behind gRPC.

    gRPC Search ──> a queue ──> one scanner ──> the newest epoch of the postings  (a thread beside it: batching.py)
    gRPC Get | Holds | Explain ───────────> the same
    gRPC Percolate | Standing           ──> the newest epoch of the standing queries
    index.update.v1 ──> a shard's loop  ──> epochs of postings                    (this process's main thread)
    alerts.query.v1 ──> a shard's loop  ──> epochs of standing queries            (a thread beside it)

Until a shard has caught up with its log, calls that read it are UNAVAILABLE; afterwards they are answered, and a store
that cannot follow its log says so in `degraded`. The role is ready when both have caught up and a search whose answer
is known was answered right. A scan holds one of `threads` places; waiting for a version holds none, and stands before
the queue. Whether a search can be answered by its deadline is told by the rows that its plan, and the plans of those
before it, have to look at.
"""

from __future__ import annotations

import gc
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import grpc
import structlog
import torch
from prometheus_client import Counter

from penstock.infra.settings import RetrievalSettings, Settings
from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.retrieval import kinds
from penstock.retrieval.batching import Batcher, Cost, Limits, Pending, each
from penstock.retrieval.client import MIN_VERSION_TIMED_OUT
from penstock.retrieval.dead_letters import DeadLetters
from penstock.retrieval.feed import KafkaLog, Source
from penstock.retrieval.known_answer import wrong_answer
from penstock.retrieval.lexicon import Lexicon
from penstock.retrieval.percolate.service import PercolationService, StandingShard
from penstock.retrieval.search.plan import Choice, Plan
from penstock.retrieval.search.scan import GATHERED, SCANNED, STARTED
from penstock.retrieval.shard import Letters, Shard, answering
from penstock.retrieval.store.reading import MAX_K
from penstock.retrieval.store.records import Ask, SearchResult, StoreCounts
from penstock.retrieval.store.store import Store
from penstock.schemas import grpc_avro, topics
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Filter, IndexUpdate, MinVersion
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

PLANS = Counter("penstock_search_plans_total", "Searches by how their rows were chosen", ["plan"])
ROWS = Counter("penstock_search_rows_total", "Rows of searches: looked at, passed, rescored in float64", ["step"])

SWITCH_S = 0.0001  # a scan that wants the interpreter does not wait 5 ms for each turn beside the loop that applies
WORKERS = 24  # gRPC threads beside those of searches in the queue
WAITERS = 12  # of them that may wait for a version at a time
LOOK_UP_S = 0.1  # how often one that waits sees whether its caller has left
HIT_BYTES = 256  # of an answer, about: a hit as an object, its id and its place in the reply
NODE_BYTES = 400  # of a filter, about
LOOKED_AT = 0.1  # what it costs to see whether a row passes, in units of its product with one query; about
FRESH_S = 5.0  # a search answered so recently says that searches are answered
PROBE_S = 1.0  # for a search whose answer is known
PROBE_AGAIN_S = 1.0
MAX_IDS = 10_000
MAX_CLAUSES = 256
OTHER_SPACE = "some postings have a vector of another space and are found by filters only"

PostingsShard = Shard[IndexUpdate, Store, StoreCounts]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def limits_of(settings: RetrievalSettings) -> Limits:
    return Limits(settings.max_batch, settings.max_queue, settings.max_queue_bytes)


@dataclass(frozen=True, slots=True)
class Probe:
    """The last search whose answer was known."""

    reason: str  # what was wrong with the answer; empty when nothing was
    seconds: float
    at: float  # monotonic seconds


class RetrievalService:
    """The calls, from gRPC's threads. Owns the scanner: `close` ends it. `_probing` guards `_probe`."""

    def __init__(
        self,
        shard: PostingsShard,
        standing: StandingShard,
        name: str,
        threads: int,
        lexicon: Lexicon | None = None,
        limits: Limits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shard = shard
        self._standing = standing
        self._name = name
        self._lexicon = lexicon or Lexicon()
        self._scans = threading.BoundedSemaphore(max(1, threads))
        self.percolation = PercolationService(standing, name, self._scans, max(1, threads))
        self._waiters = threading.BoundedSemaphore(WAITERS)
        self._clock = clock
        self._batcher: Batcher[tuple[Store, Ask], SearchResult] = Batcher(
            _scan, limits or limits_of(RetrievalSettings()), self._scans, name
        )
        self._batcher.start()
        self._probing = threading.Lock()
        self._probe = Probe("", -0.001, -math.inf)
        self._turn = 0  # which posting the known answer is; the same until it is right

    def close(self) -> None:
        """Ends the scanner; searches that wait for it are told."""
        self._batcher.close()

    def search(self, request: SearchRequest, context: grpc.ServicerContext) -> SearchReply:
        store, degraded = self._fit_store()
        degraded += self._await(store, request.min_version, request.timeout_ms, context)
        if not 0 < request.k <= MAX_K:  # before anything is reckoned with it
            raise InvalidRecord("k", request.k, f"1 to {MAX_K}")
        began = time.perf_counter()
        vector = request.vector
        if vector is None and request.words is not None:
            vector = self._lexicon.query(request.words, store.space_id)
        ask = Ask(vector, request.filters, request.k, now_ms(), request.tenant, request.at_epoch)
        left = context.time_remaining()
        pending = self._submit(store, ask, held_bytes(ask), math.inf if left is None else time.monotonic() + left)
        if not context.add_callback(lambda: self._batcher.withdraw(pending)):
            self._batcher.withdraw(pending)
        result = self._batcher.wait(pending)
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

    def holds(self, request: HoldsRequest, context: grpc.ServicerContext) -> HoldsReply:
        if len(request.clauses) > MAX_CLAUSES:
            raise InvalidRecord("clauses", f"{len(request.clauses)} clauses", f"at most {MAX_CLAUSES} a call")
        store, _ = self._fit_store()
        with self._place(context):
            moment = now_ms()
            held = tuple(store.holds(clause, now_ms=moment, tenant=request.tenant) for clause in request.clauses)
        return HoldsReply(held=held)

    def explain(self, request: ExplainRequest, context: grpc.ServicerContext) -> ExplainReply:
        store, degraded = self._fit_store()
        with self._place(context):
            said = store.explain(request.filters, now_ms=now_ms(), tenant=request.tenant)
        return ExplainReply(
            filter=said.filter,
            postings=said.rows,
            passed=said.passed,
            clauses=tuple(ClauseEffect(clause=c.clause, passed=c.passed, missing=c.missing) for c in said.clauses),
            shard=self._name,
            degraded=tuple(degraded),
            plan=(f"{self._name}: {'; '.join(said.plan)}",),
        )

    def status(self, _request: StatusRequest, _context: grpc.ServicerContext) -> RoleStatus:
        """Ready means that the loop moves, the log is followed, and searches are answered, and answered right."""
        reasons = [self._shard.not_ready()]
        if standing := self._standing.not_ready():
            reasons.append(f"standing queries: {standing}")
        store, view = self._shard.store, self._shard.view
        if not reasons[0]:
            reasons.append(self._search_known())
        reason = "; ".join(filter(None, reasons))
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
                "device_bytes": counts.bytes_device,
                "snapshot_age_seconds": age,
                "probe_ms": 1000 * self._probe.seconds,
                "searches_waiting": len(self._batcher),
                **self.percolation.numbers(),
            },
            texts={
                "shard": self._name,
                "epoch": str(store.epoch),
                "space_id": store.space_id,
                "device": store.device,
                "snapshot": view.snapshot,
                "last_refusal": view.last_refusal,
                "problems": "; ".join(view.problems),
                **self.percolation.texts(),
            },
        )

    def _search_known(self) -> str:
        """Why searches cannot be relied on; empty when they can. Asks once a second, however often it is called."""
        with self._probing:
            began = self._clock()
            if began - self._probe.at >= PROBE_AGAIN_S:
                reason = self._ask_known()
                self._turn += not reason
                self._probe = Probe(reason, self._clock() - began, self._clock())
            return self._probe.reason

    def _ask_known(self) -> str:
        store, give_up = self._shard.store, time.monotonic() + PROBE_S

        def search(ask: Ask) -> SearchResult:
            return self._batcher.wait(self._submit(store, ask, 0, give_up))

        try:
            wrong = wrong_answer(search, store, now_ms=now_ms(), turn=self._turn)
        except (Refused, TimeoutError) as error:  # others are searching: their answers say enough
            busy = time.monotonic() - self._batcher.served_at < FRESH_S
            return "" if busy else f"searches are not answered: {error}"
        except Exception as error:  # whatever it is, the shard does not search: that is the answer
            log.error("a search whose answer is known failed", error=str(error), exc_info=True)
            return f"a search whose answer is known failed: {type(error).__name__}: {error}"
        if wrong:
            log.error("a search whose answer is known was answered wrong", reason=wrong)
        return wrong and f"a search whose answer is known was answered wrong: {wrong}"

    def _submit(self, store: Store, ask: Ask, nbytes: int, deadline: float) -> Pending[tuple[Store, Ask], SearchResult]:
        """Into the queue. Raises Refused, and InvalidRecord of a filter or an epoch that is wrong: it costs no scan."""
        return self._batcher.submit((store, ask), nbytes, deadline, expected_cost(store.planned(ask), ask))

    @contextmanager
    def _place(self, context: grpc.ServicerContext) -> Iterator[None]:
        """One of the places of scans, for as long as the block lasts. Raises TimeoutError at the caller's deadline."""
        left = context.time_remaining()
        if not self._scans.acquire(timeout=None if left is None else max(0.0, left)):
            raise TimeoutError(f"{self._name}: the deadline came before there was a place to scan")
        try:
            if not context.is_active():
                raise TimeoutError(f"{self._name}: nobody waits for this call any more")
            yield
        finally:
            self._scans.release()

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
            give_up = time.monotonic() + seconds
            while True:
                still = give_up - time.monotonic()
                arrived = store.await_version(wanted.posting_id, wanted.version, max(0.0, min(still, LOOK_UP_S)))
                if arrived or still <= LOOK_UP_S:
                    break
                if not context.is_active():
                    raise TimeoutError(f"{self._name}: nobody waits for {wanted.posting_id} any more")
        finally:
            self._waiters.release()
        return () if arrived else (_counted(MIN_VERSION_TIMED_OUT),)


def _scan(batch: Sequence[tuple[Store, Ask]]) -> list[SearchResult | Exception]:
    """One pass over each store that the batch is about: one, but for a shard that has just begun anew."""
    moment = now_ms()
    answers: dict[int, SearchResult | Exception] = {}
    for store in dict.fromkeys(store for store, _ in batch):
        places = [place for place, (whose, _) in enumerate(batch) if whose is store]
        asks = [replace(batch[place][1], now_ms=moment) for place in places]
        answers.update(zip(places, each(store.search_many, asks), strict=True))
    for answer in answers.values():
        if not isinstance(answer, Exception):
            _count(answer)
    return [answers[place] for place in range(len(batch))]


def _count(result: SearchResult) -> None:
    PLANS.labels(result.plan).inc()
    for step, rows in (("looked at", result.looked_at), ("passed", result.total), ("rescored", result.rescored)):
        ROWS.labels(step).inc(rows)


def expected_cost(planned: Plan, ask: Ask) -> Cost:
    """What a search adds to a scan, as its plan has it: in units of a row's product with one query."""
    looked = STARTED + LOOKED_AT * planned.rows
    if ask.vector is None or planned.choice is Choice.NOTHING:
        return Cost(looked)
    if planned.choice is Choice.GATHER:
        return Cost(looked + (GATHERED + 1) * planned.share * planned.rows)
    return Cost(looked + planned.rows, SCANNED * planned.rows)


def held_bytes(ask: Ask) -> int:
    """What a search holds until it is answered, its answer included; about."""
    vector = 0 if ask.vector is None else len(ask.vector.dense) + len(ask.vector.lexical or b"")
    return vector + _filter_bytes(ask.filter) + HIT_BYTES * min(max(ask.k, 0), MAX_K)


def _filter_bytes(tree: Filter | None) -> int:
    if tree is None:
        return 0
    words = sum(64 + len(word) for word in tree.values)
    return NODE_BYTES + words + sum(_filter_bytes(child) for child in tree.children)


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
    sys.setswitchinterval(SWITCH_S)
    folder = settings.data_dir / "retrieval" / own.shard
    lexicon = kinds.lexicon_of(settings)
    backend = kinds.backend_of(settings)
    shard = Shard(own, folder, updates.source, updates.letters, kinds.postings(settings, lexicon, backend), now_ms)
    kept = kinds.standing_queries(settings, backend)
    standing = Shard(own, folder / "standing", queries.source, queries.letters, kept, now_ms)
    service = RetrievalService(shard, standing, own.shard, own.threads, lexicon, limits_of(own))
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
        workers=WORKERS + own.max_queue + own.max_batch,  # a search holds a thread while it waits
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
        service.close()
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
