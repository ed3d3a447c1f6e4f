"""rank.request.v1 in, rank.result.v1 out: one loop, at least once.

    1. poll      while the backlog takes more; otherwise the partitions are paused, and nothing is dropped
    2. decode    a poison record becomes a dead letter; an invalid request a dead letter and an error result; a schema
                 registry that is away is waited for
    3. submit    beside the callers over gRPC. What is refused is offered again after the time that it was told; until
                 then it waits in line (backlog.py) and holds up neither other classes nor other tenants. A search that
                 waited past its deadline is answered with that; alerts and recommendations are served late
    4. answer    the result, or an error result naming stage and cause, keyed tenant/request_id
    5. commit    up to the first record whose answer has not been delivered

A crash between 4 and 5 answers again: results are idempotent by request_id.

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
from prometheus_client import Gauge

from penstock.infra.telemetry import DEAD_LETTERS, DEGRADED, ids_of
from penstock.ranker.backlog import Backlog, Held
from penstock.ranker.errors import DeadlinePassed, QueueClosed
from penstock.ranker.job import Job, error_result
from penstock.ranker.service import RankService
from penstock.ranker.unframing import RegistryAway, unframed
from penstock.schemas import topics
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.errors import MalformedRecord, WireError
from penstock.schemas.events import DeadLetter, RankRequest, RankResult
from penstock.schemas.kafka import Rebalance, Record, Sink, Source
from penstock.schemas.wire import Codec, codec

log = structlog.get_logger(role="ranker")

IN_LINE = Gauge("penstock_rank_in_line", "Requests read from Kafka that the ranker has not taken in yet", ["class"])
PAUSED = Gauge("penstock_rank_requests_paused", "1 while no more rank requests are read from Kafka")

MOST_A_TURN = 256  # records read, and requests offered: a storm of alerts keeps no search waiting for longer
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
    """Owns the source and the backlog; `run` on one thread. Workers call back into `_answered`.

    `people`: requests that somebody waits for, that may be unanswered at once.
    """

    def __init__(
        self,
        service: RankService,
        check: Callable[[RankRequest], None],
        open_source: Callable[[Rebalance], Source],
        sink: Sink,
        people: int,
        requests: Codec[RankRequest],
        results: Codec[RankResult],
        now_ms: Callable[[], int],
    ) -> None:
        self._service = service
        self._check = check
        self._open_source = open_source
        self._sink = sink
        self._people = people
        self._requests = requests
        self._results = results
        self._now_ms = now_ms
        self._lock = threading.Lock()  # guards the backlog and what was not sent
        self._backlog = Backlog(people)
        self._polled: deque[Record] = deque()  # not yet decoded: more than a moment only while the registry is away
        self._decode_at = 0.0
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
            self._backlog = Backlog(self._people)
        self._polled.clear()
        self._paused = False
        PAUSED.set(0)
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
            room = self._backlog.room
        for record in source.poll(min(MOST_A_TURN, room), POLL_S):
            with self._lock:
                self._backlog.read(record)
            self._polled.append(record)
        self._take_polled()
        self._submit()
        with self._lock:
            full = bool(self._polled) or self._backlog.is_full
            waiting = self._backlog.waiting()
        for class_, count in waiting.items():
            IN_LINE.labels(class_.value).set(count)
        if full != self._paused:
            self._paused = full
            PAUSED.set(full)
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
        with self._lock:
            self._backlog.hold(record, Job(request, request.deadline))

    def _submit(self) -> None:
        """Offers what waits in line, as much of it as has its turn."""
        now_ms, now_s, offers = self._now_ms(), time.monotonic(), 0
        with self._lock:
            late, lines = list(self._backlog.late(now_ms)), self._backlog.due(now_s)
        for held in late:
            self._promise(held)
            late_ms = now_ms - held.job.deadline_ms
            self._service.turn_away(held.job, DeadlinePassed("there was room in the queue", late_ms=late_ms))
        for line in lines:
            while line.is_due(now_s) and offers < MOST_A_TURN:
                offers += 1
                held = line.head
                try:
                    after_s = self._service.try_submit(held.job)
                except QueueClosed:
                    return
                with self._lock:
                    if after_s is not None:
                        self._backlog.put_off(line, time.monotonic(), after_s)
                        break
                    self._backlog.take(line)
                self._promise(held)

    def _promise(self, held: Held) -> None:
        """Its answer is sent when it is there."""
        record, job = held.record, held.job
        job.future.add_done_callback(lambda done: self._answered(record, job, done))

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
                    self._backlog.answered(record)

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
            positions = self._backlog.committable()
        if positions:
            source.commit(positions, wait=wait)

    def _drain(self, source: Source) -> None:
        """Answer what was taken in, within DRAIN_S; the rest is read again by whoever comes next."""
        give_up = time.monotonic() + DRAIN_S
        source.pause()
        with self._lock:
            abandoned = len(self._polled) + sum(self._backlog.waiting().values())
        while time.monotonic() < give_up:
            with self._lock:
                if len(self._backlog) <= abandoned:
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
            self._backlog.forget(partitions)
        self._polled = deque(record for record in self._polled if record.partition not in partitions)
