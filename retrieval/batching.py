"""Searches that arrive while a scan runs are answered by the next one, together.

    1. offer    refused at once where the queue has no room for it, or where its answer would come after its deadline
    2. gather   nobody waits for an idle scanner; after a scan, callers that were just answered may join those who wait
    3. take     oldest first, at most `max_batch`; whoever is too late leaves first and costs no scan
    4. answer   to each its own result, or its own error

`BatchQueue` is the policy: plain data under a clock that is passed in. `Batcher` makes it safe for threads and owns the
one thread that scans. Invariant: what was offered and not refused leaves the queue exactly once: taken, expired or
withdrawn.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Gauge

from penstock.infra.telemetry import STAGE_SECONDS
from penstock.schemas.grpc_avro import NotReady, Refused

A = TypeVar("A")
R = TypeVar("R")
T = TypeVar("T")

GATHER_S = 0.001  # at most, from the end of a scan
CLOSE_S = 5.0
REMEMBERED = 0.9  # what a scan's time weighs after each later one

REQUESTS = Counter("penstock_search_requests_total", "Searches by what became of them", ["outcome"])
BATCHES = Counter("penstock_search_batches_total", "Scans by how many searches they answered", ["searches"])
WAITING = Gauge("penstock_search_queue_depth", "Searches that wait for a scan")
WAITING_BYTES = Gauge("penstock_search_queue_bytes", "What the waiting searches hold, their answers included")


@dataclass(frozen=True, slots=True)
class Limits:
    max_batch: int
    max_waiting: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """What a search adds to its scan, in any one unit: a batch pays each `own`, and the largest `shared` once."""

    own: float = 1.0
    shared: float = 0.0


ONE = Cost()


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """A place in the queue. Times are monotonic seconds."""

    item: T
    nbytes: int
    deadline: float  # inf: none
    offered: float
    cost: Cost = ONE


@dataclass(frozen=True, slots=True)
class Taken(Generic[T]):
    batch: tuple[Ticket[T], ...]
    expired: tuple[Ticket[T], ...]


def cost_of(searches: Iterable[Cost]) -> float:
    """What a scan for these searches costs."""
    own = shared = 0.0
    for one in searches:
        own += one.own
        shared = max(shared, one.shared)
    return own + shared


class ScanTimes:
    """How long a scan of some cost takes: a line through recent ones by least squares, older ones weighing less."""

    def __init__(self) -> None:
        self._weight = self._c = self._t = self._cc = self._ct = 0.0

    def add(self, cost: float, seconds: float) -> None:
        self._weight = REMEMBERED * self._weight + 1
        self._c = REMEMBERED * self._c + cost
        self._t = REMEMBERED * self._t + seconds
        self._cc = REMEMBERED * self._cc + cost * cost
        self._ct = REMEMBERED * self._ct + cost * seconds

    def of(self, cost: float) -> float:
        """Seconds; 0 before the first scan. Never less for a greater cost, never less than 0."""
        if not self._weight:
            return 0.0
        c, t = self._c / self._weight, self._t / self._weight
        square = self._cc / self._weight
        spread = square - c * c
        slope = (self._ct / self._weight - c * t) / spread if spread > 1e-9 * square else 0.0
        steepest = t / c if c else 0.0  # through the origin: a scan that costs nothing takes no less than no time
        return max(0.0, t + min(max(slope, 0.0), steepest) * (cost - c))


class BatchQueue(Generic[T]):
    """Who may wait and who is next, for one scanner. Not safe for threads; `now` is monotonic seconds."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.nbytes = 0
        self.times = ScanTimes()
        self._waiting: dict[Ticket[T], None] = {}  # in the order of their offers
        self._scanning = 0  # searches under the scan that runs; 0: none runs
        self._cost = 0.0  # of that scan
        self._began = 0.0
        self._ended = -math.inf
        self._expected = 0  # who may wait soon after a scan: those who waited at its end, and those it answered

    def __len__(self) -> int:
        return len(self._waiting)

    def offer(self, item: T, nbytes: int, deadline: float, now: float, cost: Cost = ONE) -> Ticket[T]:
        """A place in the queue. Raises Refused, with the numbers; the queue is then as it was."""
        limits, waiting = self.limits, len(self._waiting)
        if waiting >= limits.max_waiting:
            raise Refused(f"{waiting} searches wait already, at most {limits.max_waiting} may: try again later")
        if self.nbytes + nbytes > limits.max_bytes:
            raise Refused(
                f"this search needs {nbytes} bytes, those that wait hold {self.nbytes} of {limits.max_bytes}: "
                "try again later, or ask for fewer hits"
            )
        delay = 0.0 if deadline == math.inf else self.delay(now, cost)
        if now + delay > deadline:
            raise Refused(
                f"an answer is expected in {1000 * delay:.0f} ms, the deadline is in {1000 * (deadline - now):.0f} ms: "
                f"{waiting} searches wait, a scan for this one alone takes "
                f"{1000 * self.times.of(cost_of([cost])):.0f} ms"
            )
        ticket = Ticket(item, nbytes, deadline, now, cost)
        self._waiting[ticket] = None
        self.nbytes += nbytes
        return ticket

    def delay(self, now: float, cost: Cost = ONE) -> float:
        """Seconds until a search that is offered now is expected to be answered; 0 while the scanner is idle.

        An idle scanner takes whatever comes: a wrong estimate must meet with a scan that corrects it.
        """
        if not self._scanning and not self._waiting:
            return 0.0
        running = max(0.0, self._began + self.times.of(self._cost) - now) if self._scanning else 0.0
        return running + sum(self.times.of(cost) for cost in self._costs_before(cost))

    def _costs_before(self, cost: Cost) -> Iterator[float]:
        """Of the scans that those who wait need, and after them a search of this cost."""
        costs = [*(ticket.cost for ticket in self._waiting), cost]
        for start in range(0, len(costs), self.limits.max_batch):
            yield cost_of(costs[start : start + self.limits.max_batch])

    def due(self, now: float) -> float | None:
        """From when on the next batch may be taken; None while there is none to take."""
        if self._scanning or not self._waiting:
            return None
        enough = len(self._waiting) >= min(self._expected, self.limits.max_batch)
        return now if enough else max(now, self._ended + GATHER_S)

    def take(self, now: float) -> Taken[T]:
        """The next batch, and everyone whose deadline has come. With a batch a scan runs, until `end`."""
        if self._scanning:
            raise ValueError("a scan runs already: end it first")
        expired = tuple(ticket for ticket in self._waiting if ticket.deadline <= now)
        for ticket in expired:
            self._leave(ticket)
        batch = tuple(self._waiting)[: self.limits.max_batch]
        for ticket in batch:
            self._leave(ticket)
        self._scanning, self._began = len(batch), now
        self._cost = cost_of(ticket.cost for ticket in batch)
        return Taken(batch, expired)

    def end(self, now: float) -> None:
        """The scan is over."""
        self.times.add(self._cost, now - self._began)
        self._expected = self._scanning + len(self._waiting)
        self._scanning, self._ended = 0, now

    def withdraw(self, ticket: Ticket[T]) -> bool:
        """Takes out a search that nobody waits for; False when it has left already."""
        if ticket not in self._waiting:
            return False
        self._leave(ticket)
        return True

    def clear(self) -> tuple[Ticket[T], ...]:
        """Takes out everyone."""
        waiting = tuple(self._waiting)
        for ticket in waiting:
            self._leave(ticket)
        return waiting

    def _leave(self, ticket: Ticket[T]) -> None:
        del self._waiting[ticket]
        self.nbytes -= ticket.nbytes


@dataclass(slots=True, eq=False)
class Pending(Generic[A, R]):
    """A search under way. Its future is set exactly once; `deadline` in monotonic seconds."""

    ask: A
    deadline: float
    answer: Future[R] = field(default_factory=Future)
    ticket: Ticket[Any] | None = None


class Batcher(Generic[A, R]):
    """One scanner behind a queue. Owns the queue, under its lock, and the thread that calls `scan`.

    `scan` answers a batch: one result or exception an ask, in order. It is called with a place of `places` held, for
    which a batch waits before it is taken, so that whoever arrives meanwhile is in it. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        scan: Callable[[Sequence[A]], Sequence[R | Exception]],
        limits: Limits,
        places: AbstractContextManager[Any],
        name: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scan = scan
        self._places = places
        self._name = name
        self._clock = clock
        self._queue: BatchQueue[Pending[A, R]] = BatchQueue(limits)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="scanner", daemon=True)
        self.served_at = -math.inf  # when a scan last gave a result; monotonic seconds

    def __len__(self) -> int:
        return len(self._queue)

    def start(self) -> None:
        self._thread.start()

    def submit(self, ask: A, nbytes: int, deadline: float = math.inf, cost: Cost = ONE) -> Pending[A, R]:
        """Puts a search into the queue. Raises Refused or NotReady."""
        pending: Pending[A, R] = Pending(ask, deadline)
        with self._changed:
            if self._closed:
                raise NotReady(f"{self._name} is stopping")
            try:
                pending.ticket = self._queue.offer(pending, nbytes, deadline, self._clock(), cost)
            except Refused as refusal:
                REQUESTS.labels("refused").inc()
                raise Refused(f"{self._name}: {refusal}") from None
            self._told()
        return pending

    def withdraw(self, pending: Pending[A, R]) -> None:
        """The caller has left: its search costs no scan any more, unless one is at it."""
        self._drop(pending, "left")

    def wait(self, pending: Pending[A, R]) -> R:
        """The answer. Raises its own error, TimeoutError at the deadline or after `withdraw`, NotReady at the end."""
        left = None if pending.deadline == math.inf else max(0.0, pending.deadline - self._clock())
        try:
            return pending.answer.result(left)
        except CancelledError:
            raise TimeoutError(f"{self._name}: nobody waited for this search any more") from None
        except TimeoutError:
            self._drop(pending, "expired")
            if not pending.answer.cancelled():  # it came at the last moment
                return pending.answer.result()
            raise TimeoutError(f"{self._name}: the deadline came before the answer") from None

    def turn(self) -> None:
        """Takes a batch and answers it, on this thread. For the scanner's own, and for tests that have none."""
        with self._places:
            with self._changed:
                taken = self._queue.take(self._clock())
                for ticket in taken.expired:
                    self._cancel(ticket.item, "expired")
                self._told()
            if taken.batch:
                self._answer([ticket.item for ticket in taken.batch])

    def close(self) -> None:
        """Ends the thread after the scan that runs, if that ends soon. Whoever waits still is told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)
        with self._changed:
            for ticket in self._queue.clear():
                self._give(ticket.item, NotReady(f"{self._name} is stopping"))
            self._told()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (due := self._queue.due(now := self._clock())) != now:
                    self._changed.wait(None if due is None else due - now)
                if self._closed:
                    return
            self.turn()

    def _answer(self, batch: list[Pending[A, R]]) -> None:
        began = self._clock()
        for pending in batch:
            assert pending.ticket is not None
            STAGE_SECONDS.labels("retrieval", "queue").observe(began - pending.ticket.offered)
        answers: Sequence[R | Exception]
        try:
            answers = self._scan([pending.ask for pending in batch])
            if len(answers) != len(batch):
                raise RuntimeError(f"a scan gave {len(answers)} answers to {len(batch)} searches")
        except Exception as error:
            answers = [error] * len(batch)
        ended = self._clock()
        STAGE_SECONDS.labels("retrieval", "scan").observe(ended - began)
        BATCHES.labels(_size(len(batch))).inc()
        with self._changed:
            self._queue.end(ended)
            for pending, answer in zip(batch, answers, strict=True):
                self._give(pending, answer)

    def _give(self, pending: Pending[A, R], answer: R | Exception) -> None:
        if isinstance(answer, Exception):
            outcome = "failed"
        else:
            outcome = "served"
            self.served_at = self._clock()
        if not pending.answer.set_running_or_notify_cancel():
            outcome = "late"
        elif isinstance(answer, Exception):
            pending.answer.set_exception(answer)
        else:
            pending.answer.set_result(answer)
        REQUESTS.labels(outcome).inc()

    def _drop(self, pending: Pending[A, R], outcome: str) -> None:
        with self._changed:
            assert pending.ticket is not None
            if self._queue.withdraw(pending.ticket):
                self._cancel(pending, outcome)
                self._told()
            else:
                pending.answer.cancel()  # under a scan, or answered: then this does nothing

    def _cancel(self, pending: Pending[A, R], outcome: str) -> None:
        pending.answer.cancel()
        pending.answer.set_running_or_notify_cancel()
        REQUESTS.labels(outcome).inc()

    def _told(self) -> None:
        """The queue has changed: the scanner and Prometheus are to know. Under the lock."""
        WAITING.set(len(self._queue))
        WAITING_BYTES.set(self._queue.nbytes)
        self._changed.notify_all()


def each(many: Callable[[Sequence[A]], Sequence[R]], asks: Sequence[A]) -> list[R | Exception]:
    """What `many` answers, and for the asks it fails on their errors: a batch that fails is halved until they stand
    alone. What is wrong with an ask is found before its scan, so that this costs little more than one."""
    try:
        return list(many(asks))
    except Exception as error:
        if len(asks) == 1:
            return [error]
    half = len(asks) // 2
    return each(many, asks[:half]) + each(many, asks[half:])


def _size(searches: int) -> str:
    """The power of two from which on a batch is counted: 1, 2, 4, …"""
    return str(1 << (searches.bit_length() - 1))
