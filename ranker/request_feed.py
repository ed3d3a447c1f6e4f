"""rank.request.v1 in, rank.result.v1 out: one loop, at least once.

    1. poll      while the queue takes more; otherwise the partitions are paused and nothing is dropped
    2. decode    a poison record becomes a dead letter; an invalid request a dead letter and an error result; a schema
                 registry that is away is waited for
    3. submit    to the one admission queue, beside the callers over gRPC
    4. answer    the result, or an error result naming stage and cause, keyed tenant/request_id
    5. commit    up to the first record whose answer has not been delivered

A crash between 4 and 5 answers again: results are idempotent by request_id. Kafka may hold half of the queue at most,
so that interactive callers find room while a backlog is worked off.

Where it stands: life-of-a-query.md, step 4.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import structlog

from penstock.infra.telemetry import DEAD_LETTERS, DEGRADED, ids_of
from penstock.ranker.errors import QueueClosed
from penstock.ranker.offsets import OffsetTracker
from penstock.ranker.service import Job, RankService, error_result
from penstock.ranker.unframing import RegistryAway, unframed
from penstock.schemas import topics
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.errors import MalformedRecord, WireError
from penstock.schemas.events import DeadLetter, RankRequest, RankResult
from penstock.schemas.kafka import Rebalance, Record, Sink, Source
from penstock.schemas.wire import Codec, codec

log = structlog.get_logger(role="ranker")

POLL_S = 0.02  # how long a delivery report waits at most before it is taken
COMMIT_EVERY_S = 0.2
REOPEN_AFTER_S = 1.0
RESEND_AFTER_S = 0.5
ASK_REGISTRY_AFTER_S = 0.5
DRAIN_S = 5.0
STAGE = "rank"


@dataclass(frozen=True, slots=True)
class _Message:
    topic: str
    key: bytes | None
    value: bytes
    instead: bytes | None = None  # what to send when this cannot be delivered


class RequestFeed:
    """Owns the source and the offsets; `run` on one thread. Workers call back into `_answered`."""

    def __init__(
        self,
        service: RankService,
        check: Callable[[RankRequest], None],
        open_source: Callable[[Rebalance], Source],
        sink: Sink,
        limit: int,
        requests: Codec[RankRequest],
        results: Codec[RankResult],
        now_ms: Callable[[], int],
    ) -> None:
        self._service = service
        self._check = check
        self._open_source = open_source
        self._sink = sink
        self._limit = max(1, limit)
        self._requests = requests
        self._results = results
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._tracker = OffsetTracker()
        self._polled: deque[Record] = deque()  # not yet decoded: more than a moment only while the registry is away
        self._decode_at = 0.0
        self._waiting: list[tuple[Record, Job]] = []  # read, not yet taken in by the queue
        self._unsent: list[tuple[float, _Message, Callable[[], None]]] = []
        self._paused = False
        self._commit_at = 0.0
        self._source: Source | None = None

    def run(self, stop: threading.Event) -> None:
        """Until `stop` is set. A source that breaks is opened again; what was not committed is read again."""
        while not stop.is_set():
            try:
                self._feed(stop)
            except Exception as error:
                DEGRADED.labels("ranker", "request feed").inc()
                log.error("request feed starts again", error=f"{type(error).__name__}: {error}")
                stop.wait(REOPEN_AFTER_S)

    def _feed(self, stop: threading.Event) -> None:
        self._meet_registry()
        source = self._source = self._open_source(Rebalance(self._on_assigned, self._on_revoked))
        with self._lock:
            self._tracker = OffsetTracker()
        self._polled.clear()
        self._waiting, self._paused = [], False
        try:
            while not stop.is_set():
                self.step(source)
            self._drain(source)
        finally:
            self._source = None
            source.close()

    def step(self, source: Source) -> None:
        """One turn of the loop."""
        with self._lock:
            room = self._limit - len(self._tracker)
        for record in source.poll(max(1, room), POLL_S):
            with self._lock:
                self._tracker.start(record.partition, record.offset)
            self._polled.append(record)
        self._take_polled()
        self._submit()
        with self._lock:
            full = bool(self._polled) or bool(self._waiting) or len(self._tracker) >= self._limit
        if full != self._paused:
            self._paused = full
            (source.pause if full else source.resume)()
        self._send_again()
        self._sink.serve()
        if time.monotonic() >= self._commit_at:
            self._commit(source)

    # --- in ----------------------------------------------------------------------------------------------------------

    def _meet_registry(self) -> None:
        """Encodes a result: the codec keeps its frame, so that workers' results never wait for a schema registry."""
        self._results.encode_unbounded(RankResult(request_id="", timings={}))

    def _take_polled(self) -> None:
        while self._polled and time.monotonic() >= self._decode_at:
            try:
                self._take(self._polled[0])
            except RegistryAway as error:
                DEGRADED.labels("ranker", "schema registry away").inc()
                log.warning("rank requests wait for the schema registry", waiting=len(self._polled), error=str(error))
                self._decode_at = time.monotonic() + ASK_REGISTRY_AFTER_S
                return
            self._polled.popleft()

    def _take(self, record: Record) -> None:
        request: RankRequest | None = None
        try:
            if record.value is None:
                raise MalformedRecord("no value: a rank request is a record, there is nothing to delete here")
            request = unframed(self._requests, record.value)
            self._check(request)
        except WireError as error:
            DEAD_LETTERS.labels(topics.RANK_REQUESTS.name, STAGE, type(error).__name__).inc()
            where = {"partition": record.partition, "offset": record.offset}
            log.warning("rank request refused", error=str(error), **where, **ids_of(request))
            messages = [self._dead_letter(record, error, request.trace if request is not None else None)]
            if request is not None:  # somebody may wait for it by name
                messages.append(self._result_message(error_result(request, error)))
            self._post(record, messages)
            return
        self._waiting.append((record, Job(request, request.deadline)))

    def _submit(self) -> None:
        while self._waiting:
            record, job = self._waiting[0]
            try:
                if self._service.try_submit(job) is not None:
                    return  # backpressure: the partitions are paused until there is room
            except QueueClosed:
                return
            self._waiting.pop(0)
            job.future.add_done_callback(lambda done, r=record, j=job: self._answered(r, j, done))  # type: ignore[misc]

    def _answered(self, record: Record, job: Job, done: Future[RankResult]) -> None:
        error = done.exception()
        result = done.result() if error is None else error_result(job.request, error)
        self._post(record, [self._result_message(result)])

    # --- out ---------------------------------------------------------------------------------------------------------

    def _post(self, record: Record, messages: Sequence[_Message]) -> None:
        left = len(messages)

        def delivered() -> None:
            nonlocal left
            with self._lock:
                left -= 1
                if left == 0:
                    self._tracker.finish(record.partition, record.offset)

        for message in messages:
            self._send(message, delivered)

    def _send(self, message: _Message, delivered: Callable[[], None]) -> None:
        def report(error: str | None) -> None:
            if error is None:
                delivered()
                return
            DEGRADED.labels("ranker", "undelivered").inc()
            log.error("not delivered, will be sent again", topic=message.topic, error=error)
            again = message if message.instead is None else _Message(message.topic, message.key, message.instead)
            with self._lock:
                self._unsent.append((time.monotonic() + RESEND_AFTER_S, again, delivered))

        self._sink.send(message.topic, message.key, message.value, report)

    def _send_again(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [entry for entry in self._unsent if entry[0] <= now]
            self._unsent = [entry for entry in self._unsent if entry[0] > now]
        for _, message, delivered in due:
            self._send(message, delivered)

    def _dead_letter(self, record: Record, error: WireError, trace: str | None) -> _Message:
        raw = record.value or b""
        letter = dead_letter(
            topics.RANK_REQUESTS,
            key=record.key,
            raw=raw,
            stage=STAGE,
            error=error,
            failed_at=self._now_ms(),
            produced_at=record.timestamp_ms,
            trace=trace,
        )
        where = f"partition {record.partition}, offset {record.offset}"
        without = replace(
            letter, raw=b"", message=f"{error} [its {len(raw)} bytes do not fit here; they are at {where}]"
        )
        encode = codec(DeadLetter).encode_unbounded
        return _Message(topics.RANK_REQUESTS.dead_letters, record.key, encode(letter), encode(without))

    def _result_message(self, result: RankResult) -> _Message:
        key = topics.RANK_RESULTS.key(result).encode()
        fallback = RankResult(
            request_id=result.request_id,
            tenant=result.tenant,
            class_=result.class_,
            depth_asked=result.depth_asked,
            error="reply: the result could not be delivered whole; ask for a smaller page",
            timings={},
            echo=result.echo,
            trace=result.trace,
        )
        instead = self._results.encode_unbounded(fallback)
        try:
            return _Message(topics.RANK_RESULTS.name, key, self._results.encode(result), instead)
        except WireError as error:  # past Kafka's bound: say so instead
            DEGRADED.labels("ranker", "result too large").inc()
            log.error("result not encodable", error=str(error), **ids_of(result))
            return _Message(topics.RANK_RESULTS.name, key, instead)

    # --- offsets -----------------------------------------------------------------------------------------------------

    def _commit(self, source: Source, *, wait: bool = False) -> None:
        self._commit_at = time.monotonic() + COMMIT_EVERY_S
        with self._lock:
            positions = self._tracker.committable()
        if positions:
            source.commit(positions, wait=wait)

    def _drain(self, source: Source) -> None:
        """Answer what was taken in, within DRAIN_S; the rest is read again by whoever comes next."""
        give_up = time.monotonic() + DRAIN_S
        source.pause()
        abandoned = {(record.partition, record.offset) for record, _ in self._waiting}
        abandoned |= {(record.partition, record.offset) for record in self._polled}
        while time.monotonic() < give_up:
            with self._lock:
                if len(self._tracker) <= len(abandoned):
                    break
            source.poll(1, POLL_S)
            self._send_again()
            self._sink.serve()
        self._sink.flush(max(0.0, give_up - time.monotonic()))
        self._commit(source, wait=True)

    def _on_assigned(self, partitions: Sequence[int]) -> None:
        log.info("rank requests assigned", partitions=list(partitions))

    def _on_revoked(self, partitions: Sequence[int]) -> None:
        if self._source is not None:
            self._commit(self._source, wait=True)
        with self._lock:
            self._tracker.forget(partitions)
        self._polled = deque(record for record in self._polled if record.partition not in partitions)
        self._waiting = [entry for entry in self._waiting if entry[0].partition not in partitions]
