"""Open-loop clients of a running ranker: they ask when it is time, whatever has been answered until then.

    1. a search is submitted at its time. Refused, it comes again after retry-after and a little more, at most RETRIES
       times, each try with a deadline of its own; one that expired or was answered late tries again too
    2. recommendations and alerts wait in a partition each, like in Kafka: the head is offered, stays when it is refused
       and is offered again when it was told; those behind it wait
    3. digests: WAITING of them are unanswered at any time, as long as there is a supply
    4. latency is from when a try was due, so a client that is late itself counts against the ranker

One thread asks; what the ranker's threads say comes over a queue. `now_ms` gives epoch milliseconds, `clock` monotonic
seconds.
"""

from __future__ import annotations

import contextlib
import heapq
import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np

from benchmarks.driving.asking import DIGEST, INSTANT, INTERACTIVE, Asked
from benchmarks.simulating.workload import CLASSES, DEADLINES, KINDS
from benchmarks.simulating.world import RETRIES
from penstock.ranker.errors import DeadlinePassed, QueueFull
from penstock.ranker.job import Job
from penstock.schemas.events import RankClass, RankRequest, RankResult

WAITING = 64  # digests
LEAST_AGAIN_S = 1e-3


class Desk(Protocol):
    """What of the RankService clients use."""

    def submit(self, job: Job) -> None: ...

    def try_submit(self, job: Job) -> float | None: ...

    def leave(self, job: Job) -> None: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What one try came to. `result` is None where it expired or failed."""

    kind: int
    due_s: float  # from the beginning
    took_s: float
    in_time: bool
    result: RankResult | None


@dataclass(slots=True)
class Told:
    """What became of everything."""

    answers: list[Answer] = field(default_factory=list)
    met: set[int] = field(default_factory=set)  # places in the timeline of what was answered in time
    refused: Counter[str] = field(default_factory=Counter)  # searches, by why
    paused: int = 0  # times that a partition was told to wait
    errors: Counter[str] = field(default_factory=Counter)  # of what failed, by type
    late_s: list[float] = field(default_factory=list)  # how late the clients were


@dataclass(slots=True, eq=False)
class _Try:
    place: int  # in the timeline; -1: a digest
    kind: int
    query: int
    due_s: float
    tries: int
    job: Job


Request = Callable[[int, int, int], RankRequest]  # (kind, query, deadline in epoch ms)


class Clients:
    """One run. Owns the thread that calls `run`."""

    def __init__(
        self,
        desk: Desk,
        request: Request,
        now_ms: Callable[[], int],
        clock: Callable[[], float],
        seed: int,
        supply: Callable[[], int] | None = None,
    ) -> None:
        """`supply` gives the query of the next digest; without it there are none."""
        self.told = Told()
        self._desk = desk
        self._request = request
        self._now_ms = now_ms
        self._clock = clock
        self._supply = supply
        self._rng = np.random.default_rng((seed, 15))
        self._ended: SimpleQueue[tuple[_Try, float]] = SimpleQueue()
        self._coming: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = 0
        self._open: set[_Try] = set()  # taken in and not answered
        self._held: dict[RankClass, deque[_Try]] = {}
        self._paused_s: dict[RankClass, float] = {}
        self._digests = 0  # unanswered, as the next
        self._unanswered = 0  # tries of the timeline

    def run(self, asked: Sequence[Asked], until_s: float, at: Sequence[tuple[float, Callable[[], None]]] = ()) -> Told:
        """Until all that was asked has ended, digests apart, and all of `at` was called; or until `until_s`, where that
        is sooner. `at`: what is called beside, and when. What is still open then is left."""
        self._began_s = self._clock()
        for when_s, call in at:
            self._later(when_s, call)
        for place, each in enumerate(asked):
            self._later(each.at_s, partial(self._comes, place, each.kind, each.query, each.at_s))
        self._stock()
        while (now := self._elapsed_s) < until_s and (self._coming or self._unanswered):
            next_s = min(self._coming[0][0] if self._coming else math.inf, until_s)
            with contextlib.suppress(Empty):
                self._answered(*self._ended.get(timeout=max(0.0, next_s - now)))
            while self._coming and self._coming[0][0] <= self._elapsed_s:
                heapq.heappop(self._coming)[2]()
        for each in list(self._open):
            self._desk.leave(each.job)
        return self.told

    @property
    def _elapsed_s(self) -> float:
        return self._clock() - self._began_s

    def _later(self, when_s: float, call: Callable[[], None]) -> None:
        self._ties += 1
        heapq.heappush(self._coming, (when_s, self._ties, call))

    def _comes(self, place: int, kind: int, query: int, due_s: float, tries: int = 0) -> None:
        self.told.late_s.append(self._elapsed_s - due_s)
        self._unanswered += 1
        one = self._made(place, kind, query, due_s, tries)
        if kind == INTERACTIVE:
            try:
                self._desk.submit(one.job)
            except QueueFull as error:
                self.told.refused[error.why] += 1
                self._unanswered -= 1
                self._again(one, error.retry_after_s * (1 + 0.5 * self._rng.random()))
            else:
                self._took(one)
            return
        lane = one.job.request.class_
        self._held.setdefault(lane, deque()).append(one)
        self._pump(lane)

    def _made(self, place: int, kind: int, query: int, due_s: float, tries: int) -> _Try:
        left_s = due_s + DEADLINES[KINDS[kind]] - self._elapsed_s
        deadline_ms = self._now_ms() + round(1000 * left_s)
        return _Try(place, kind, query, due_s, tries, Job(self._request(kind, query, deadline_ms), deadline_ms))

    def _pump(self, lane: RankClass) -> None:
        """Offer what is at the head of a partition, unless it is paused."""
        held = self._held[lane]
        while held and self._elapsed_s >= self._paused_s.get(lane, 0.0):
            again_s = self._desk.try_submit(held[0].job)
            if again_s is None:
                self._took(held.popleft())
                continue
            self.told.paused += 1
            self._paused_s[lane] = self._elapsed_s + max(LEAST_AGAIN_S, again_s)
            self._later(self._paused_s[lane], partial(self._pump, lane))

    def _stock(self) -> None:
        """As many digests as always wait. They stand in the partition of alerts, behind what came before them."""
        while self._supply is not None and self._digests < WAITING:
            self._digests += 1
            self._held.setdefault(CLASSES[KINDS[DIGEST]], deque()).append(
                self._made(-1, DIGEST, self._supply(), self._elapsed_s, 0)
            )
            self._pump(CLASSES[KINDS[DIGEST]])

    def _took(self, one: _Try) -> None:
        self._open.add(one)
        one.job.future.add_done_callback(lambda _: self._ended.put((one, self._clock())))

    def _answered(self, one: _Try, at_s: float) -> None:
        self._open.discard(one)
        took_s = at_s - self._began_s - one.due_s
        in_time = took_s <= DEADLINES[KINDS[one.kind]]
        error = one.job.future.exception()
        result = one.job.future.result() if error is None else None
        if error is not None and not isinstance(error, DeadlinePassed):
            self.told.errors[type(error).__name__] += 1
        self.told.answers.append(Answer(one.kind, one.due_s, took_s, in_time, result))
        if result is not None and in_time:
            self.told.met.add(one.place)
        elif one.kind == INTERACTIVE:
            self._again(one, 0.1 * (1 + self._rng.random()))
        if one.kind == DIGEST:
            self._digests -= 1
            self._stock()
        else:
            self._unanswered -= 1

    def _again(self, one: _Try, after_s: float) -> None:
        if one.tries < RETRIES:
            due_s = self._elapsed_s + after_s
            self._later(due_s, partial(self._comes, one.place, one.kind, one.query, due_s, one.tries + 1))


def missed(asked: Sequence[Asked], told: Told, kind: int = INSTANT) -> int:
    """How many of a kind were not answered in time."""
    return sum(each.kind == kind and place not in told.met for place, each in enumerate(asked))
