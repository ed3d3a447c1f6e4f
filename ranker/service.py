"""The ranker's desk: one queue, a few workers, and an answer for everything that came in.

A request is submitted from gRPC or Kafka alike and gets a future. Invariant: every future ends, with a result or with
an error that names stage and cause; a request whose deadline has passed or whose caller left never costs a worker
more than saying so. A worker outlives whatever a request does to it.

Where it stands: life-of-a-query.md, step 8.
"""

from __future__ import annotations

import threading
import time
from collections import Counter as Tally
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import structlog
from prometheus_client import Counter, Histogram

from penstock.infra.telemetry import about
from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueClosed, QueueFull, RankFailed
from penstock.ranker.shaping.queue import Admission, Policy, Ticket
from penstock.schemas.errors import WireError
from penstock.schemas.events import RankClass, RankRequest, RankResult
from penstock.schemas.validate import MAX_ECHO_BYTES

log = structlog.get_logger(role="ranker")

REQUESTS = Counter("penstock_rank_requests_total", "Rank requests by how they ended", ["class", "outcome"])
SECONDS = Histogram(
    "penstock_rank_seconds",
    "From taking a request in to its answer",
    ["class"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30),
)
KEPT = 4  # every fourth worker is kept for those who wait: work that nobody watches may take seconds
OUTCOMES = ("served", "failed", "expired", "refused", "left")


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way. The future's owner is the service; the caller may leave, never cancel it."""

    request: RankRequest
    deadline_ms: int  # epoch milliseconds; the request's own, or sooner where the caller waits less
    future: Future[RankResult] = field(default_factory=Future)
    left: threading.Event = field(default_factory=threading.Event)
    ticket: Ticket[Job] | None = None

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for it."""
        return self.request.class_ is RankClass.INTERACTIVE


Rank = Callable[[Job, float], RankResult]  # (job, milliseconds it waited)


class RankService:
    """Owns the admission queue and the worker threads. `clock` gives epoch milliseconds."""

    def __init__(self, policy: Policy[Job], rank: Rank, workers: int, clock: Callable[[], int]) -> None:
        self._queue: Admission[Job] = Admission(policy, clock)
        self._rank = rank
        self._clock = clock
        self._lock = threading.Lock()
        self._tally: Tally[str] = Tally()
        self._last_served_ms = clock()
        self._workers = [
            threading.Thread(target=self._work, args=(number < workers // KEPT,), name=f"rank-{number}", daemon=True)
            for number in range(workers)
        ]

    def start(self) -> None:
        for worker in self._workers:
            worker.start()

    def close(self, timeout_s: float) -> None:
        """Take nothing more, answer what waits, end the workers; wait for all of that so many seconds."""
        self._queue.close()
        give_up = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(max(0.0, give_up - time.monotonic()))

    def submit(self, job: Job) -> None:
        """The answer comes in `job.future`. Raises QueueFull or QueueClosed: then nothing was taken in."""
        try:
            job.ticket = self._queue.offer(job, job.deadline_ms, job.urgent)
        except (QueueFull, QueueClosed):
            self._count(job, "refused")
            raise

    def try_submit(self, job: Job) -> bool:
        """The same for who keeps the job and tries again: False while the queue is full, which is no refusal yet.

        Raises QueueClosed.
        """
        try:
            job.ticket = self._queue.offer(job, job.deadline_ms, job.urgent)
        except QueueFull:
            return False
        return True

    def turn_away(self, job: Job, error: CallerLeft | DeadlinePassed | QueueClosed) -> None:
        """End a job for which there was no room while anybody waited for it."""
        outcome = {CallerLeft: "left", DeadlinePassed: "expired", QueueClosed: "refused"}[type(error)]
        self._end(job, outcome, error)

    def leave(self, job: Job) -> None:
        """Whoever asked has gone: work not begun is dropped, work begun may stop at its next stage."""
        job.left.set()
        if job.ticket is not None and self._queue.withdraw(job.ticket):
            self._end(job, "left", CallerLeft("the caller left before ranking began"))

    @property
    def depth(self) -> int:
        """Requests that wait."""
        return len(self._queue)

    def counts(self) -> dict[str, int]:
        """How many requests ended how, since the start."""
        with self._lock:
            return {outcome: self._tally[outcome] for outcome in OUTCOMES}

    @property
    def idle_ms(self) -> int:
        """Since the last request was served, or since the start."""
        with self._lock:
            return self._clock() - self._last_served_ms

    def _work(self, urgent_only: bool) -> None:
        while (taken := self._queue.take(urgent_only)) is not None:
            now = self._clock()
            for ticket in taken.expired:
                late, waited = now - ticket.deadline_ms, now - ticket.offered_ms
                self._end(ticket.item, "expired", DeadlinePassed("ranking began", late_ms=late, waited_ms=waited))
            if taken.work is not None:
                job, offered_ms = taken.work.item, taken.work.offered_ms
                with about(job.request):
                    self._serve(job, float(now - offered_ms))
                SECONDS.labels(job.request.class_.value).observe(max(0, self._clock() - offered_ms) / 1000)

    def _serve(self, job: Job, waited_ms: float) -> None:
        try:
            result = self._rank(job, waited_ms)
        except DeadlinePassed as error:
            self._end(job, "expired", error)
        except CallerLeft as error:
            self._end(job, "left", error)
        except (RankFailed, WireError) as error:
            self._end(job, "failed", error)
        except Exception as error:  # whatever it is, the caller is told and the worker lives on
            log.exception("a request broke its stage")
            self._end(job, "failed", RankFailed("rank", error))
        else:
            self._count(job, "served")
            job.future.set_result(result)

    def _end(self, job: Job, outcome: str, error: Exception) -> None:
        self._count(job, outcome)
        job.future.set_exception(error)

    def _count(self, job: Job, outcome: str) -> None:
        REQUESTS.labels(job.request.class_.value, outcome).inc()
        with self._lock:
            self._tally[outcome] += 1
            if outcome == "served":
                self._last_served_ms = self._clock()


def error_result(request: RankRequest, error: BaseException) -> RankResult:
    """The answer of a request that has none, for callers who read results and not exceptions."""
    return RankResult(
        request_id=request.request_id,
        tenant=request.tenant,
        class_=request.class_,
        depth_asked=request.depth or 0,
        error=f"{type(error).__name__}: {error}",
        timings={},
        # What is too large to be let in is too large to be sent back with the reason.
        echo=request.echo if request.echo is not None and len(request.echo) <= MAX_ECHO_BYTES else None,
        trace=request.trace,
    )
