"""RankStream over gRPC: a caller sends requests as it has them and gets each result when it is done, in any order.

    1. read      while fewer than a share of `max_queue` are unanswered; otherwise HTTP/2 holds the caller back
    2. check     an invalid request is answered with an error result, and the others go on
    3. submit    beside Kafka and the other callers over gRPC. One that is refused is offered again after the time that
                 it was told, and the stream waits meanwhile: a search until its deadline, others for as long as it
                 takes. Whoever mixes classes in a stream lets one wait for the other
    4. answer    the result, or an error result naming stage and cause, and with it room for the next

Invariant: what was read is answered exactly once, unless the stream itself ends: by its caller, its deadline, bytes
that are no request, or a ranker that stops, which answers what its queue holds. What then has no result may be asked
again elsewhere.

Where it stands: life-of-a-query.md, step 4.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import grpc
from prometheus_client import Gauge

from penstock.ranker.backlog import LONGEST_WAIT_S
from penstock.ranker.calls import Check, deadline_ms
from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueClosed
from penstock.ranker.job import Job, error_result
from penstock.ranker.service import RankService
from penstock.schemas.errors import WireError
from penstock.schemas.events import RankRequest, RankResult
from penstock.schemas.grpc_avro import NotReady, Refused

OPEN = Gauge("penstock_rank_streams_open", "Streams of rank requests open now")

MAX_STREAMS = 64  # each holds a thread of the listener, and one that reads
SHARE = 0.25  # of max_queue, that one stream may have unanswered
TOGETHER = 0.75  # of max_queue, that all streams may have in the queue of searches, and as many of what can wait
TRY_AGAIN_S = 0.02  # how long a stream waits for the others


class RankStreams:
    """Owns the open streams. `rank` is the handler of Ranker.RANK_STREAM. `now_ms` gives epoch milliseconds."""

    def __init__(self, service: RankService, check: Check, max_queue: int, now_ms: Callable[[], int]) -> None:
        self._service = service
        self._check = check
        self._now_ms = now_ms
        self._most = max(1, int(max_queue * SHARE))
        self._together = max(1, int(max_queue * TOGETHER))
        self._door = threading.Lock()  # one stream after the other looks whether there is room and takes it
        self._lock = threading.Lock()  # guards what follows
        self._taken_in: Tally[bool] = Tally()  # requests of streams, not done yet, by whether somebody waits for them
        self._open: set[_Stream] = set()
        self._closed = False

    def rank(self, requests: Iterator[RankRequest], context: grpc.ServicerContext) -> Iterator[RankResult]:
        """Raises Refused, NotReady, and what `requests` raises for bytes that are no request."""
        stream = _Stream(self._service, self._check, self._submit, self._most, self._now_ms)
        self._add(stream)
        try:
            if not context.add_callback(stream.end):
                return
            run = contextvars.copy_context().run  # the reader's log lines carry the caller's ids too
            threading.Thread(target=run, args=(stream.read, requests, context), name="rank-stream", daemon=True).start()
            while (result := stream.next_result()) is not None:
                yield result
        finally:
            stream.end()
            with self._lock:
                self._open.remove(stream)
                OPEN.set(len(self._open))

    def close(self) -> None:
        """Take nothing more in; each stream ends when what it has in the queue is answered."""
        with self._lock:
            self._closed = True
            streams = list(self._open)
        for stream in streams:
            stream.stop()

    def _submit(self, job: Job) -> float | None:
        """None when it is taken in, else after how many seconds to try again. Raises QueueClosed."""
        with self._door:
            with self._lock:
                if self._taken_in[job.urgent] >= self._together:  # digests, which wait for an hour, stop no search
                    return TRY_AGAIN_S
            after_s = self._service.try_submit(job)
            if after_s is not None:
                return min(after_s, LONGEST_WAIT_S)
            with self._lock:
                self._taken_in[job.urgent] += 1
        job.future.add_done_callback(lambda _: self._done(job))
        return None

    def _done(self, job: Job) -> None:
        with self._lock:
            self._taken_in[job.urgent] -= 1

    def _add(self, stream: _Stream) -> None:
        with self._lock:
            if self._closed:
                raise NotReady(str(QueueClosed()))
            if len(self._open) >= MAX_STREAMS:
                raise Refused(
                    f"{len(self._open)} streams are open, at most {MAX_STREAMS} may be: "
                    "send more requests on one of them, try again later or add a ranker"
                )
            self._open.add(stream)
            OPEN.set(len(self._open))


class _Stream:
    """One caller's stream. Its own thread reads, the listener's sends, workers answer in between.

    `_changed` guards everything below it. Nothing calls the service while holding it, for the service calls back.
    """

    def __init__(
        self,
        service: RankService,
        check: Check,
        submit: Callable[[Job], float | None],
        most: int,
        now_ms: Callable[[], int],
    ) -> None:
        self._service = service
        self._check = check
        self._submit = submit
        self._most = most  # requests unanswered
        self._now_ms = now_ms
        self._changed = threading.Condition()
        self._jobs: set[Job] = set()  # read and not yet done
        self._results: deque[RankResult] = deque()  # done and not yet sent
        self._all_read = False  # the caller sends no more
        self._stopping = False
        self._ended = False
        self._error: Exception | None = None

    # --- the listener's thread ---------------------------------------------------------------------------------------

    def next_result(self) -> RankResult | None:
        """Waits for the next to send; None after the last. Raises what broke the stream, or NotReady."""
        with self._changed:
            while True:
                if self._results:
                    self._changed.notify_all()
                    return self._results.popleft()
                if self._error is not None:
                    raise self._error
                if self._ended or (self._all_read and not self._jobs):
                    return None
                if self._stopping and not self._jobs:
                    raise NotReady(str(QueueClosed()))
                self._changed.wait()

    # --- from anywhere -----------------------------------------------------------------------------------------------

    def end(self, error: Exception | None = None) -> None:
        """Nobody waits any more, or `error` broke the stream: what has no result yet is withdrawn."""
        with self._changed:
            if self._ended:
                return
            self._ended, self._error = True, error
            jobs, self._jobs = self._jobs, set()
            self._changed.notify_all()
        for job in jobs:
            self._service.leave(job)

    def stop(self) -> None:
        """The ranker stops: read nothing more."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def _answered(self, job: Job, done: Future[RankResult]) -> None:
        error = done.exception()
        with self._changed:
            if job not in self._jobs:
                return  # the stream has ended
            self._jobs.remove(job)
            if error is None:
                self._results.append(done.result())
            elif not isinstance(error, QueueClosed):  # another ranker may still answer that
                self._results.append(error_result(job.request, error))
            self._changed.notify_all()

    # --- its own thread ----------------------------------------------------------------------------------------------

    def read(self, requests: Iterator[RankRequest], context: grpc.ServicerContext) -> None:
        """Takes requests in until their end or the stream's."""
        try:
            while self._may_read():
                request = next(requests, None)
                if request is None:
                    with self._changed:
                        self._all_read = True
                        self._changed.notify_all()
                    return
                self._take_in(request, context)
        except grpc.RpcError:  # the caller has gone
            self.end()
        except Exception as error:
            self.end(error)

    def _may_read(self) -> bool:
        """Waits for room; False once the stream has ended or will."""
        with self._changed:
            while not (self._ended or self._stopping) and len(self._jobs) + len(self._results) >= self._most:
                self._changed.wait()
            return not (self._ended or self._stopping)

    def _take_in(self, request: RankRequest, context: grpc.ServicerContext) -> None:
        try:
            self._check(request)
        except WireError as error:
            with self._changed:
                self._results.append(error_result(request, error))
                self._changed.notify_all()
            return
        came_ms = self._now_ms()
        job = Job(request, deadline_ms(request, context, came_ms))
        with self._changed:
            if self._ended or self._stopping:
                return
            self._jobs.add(job)
        job.future.add_done_callback(lambda done: self._answered(job, done))
        try:
            while (after_s := self._submit(job)) is not None:
                self._wait_for_room(job, came_ms, after_s)
        except (CallerLeft, DeadlinePassed, QueueClosed) as error:
            self._service.turn_away(job, error)
            if isinstance(error, QueueClosed):
                self.stop()
            return
        with self._changed:
            ended = self._ended
        if ended:  # perhaps before the job had a ticket to be withdrawn by
            self._service.leave(job)

    def _wait_for_room(self, job: Job, came_ms: int, after_s: float) -> None:
        """So long, or until one of the stream's own is done. Raises CallerLeft, DeadlinePassed or QueueClosed."""
        until_s = time.monotonic() + after_s
        with self._changed:
            unanswered = len(self._jobs)
            while True:
                if self._ended:
                    raise CallerLeft("the caller left before there was room in the queue")
                if self._stopping:
                    raise QueueClosed
                wait_s = until_s - time.monotonic()
                if job.urgent:
                    now_ms = self._now_ms()
                    left_ms = job.deadline_ms - now_ms
                    if left_ms <= 0:
                        stage = "there was room in the queue"
                        raise DeadlinePassed(stage, late_ms=-left_ms, waited_ms=now_ms - came_ms)
                    wait_s = min(wait_s, left_ms / 1000)
                if wait_s <= 0 or len(self._jobs) < unanswered:
                    return
                self._changed.wait(wait_s)
