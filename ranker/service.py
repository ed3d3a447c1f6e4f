"""The ranker's desk: one shaper that decides, a few threads that do, and an answer for everything that came in.

A request is submitted from gRPC or Kafka alike and gets a future. The shaper says who is let in, who is next and how
deep (ranker/shaping/); this applies it:

    1. offer     the request as a work: taken in, put off, or refused with the time to come back
    2. batch     a thread that has nothing to do asks what is next, while a lane is free
    3. serve     its parts, each on a thread; identical works once
    4. done      when its last part has ended, with the seconds that it had its lane, or the one engine of all lanes

Invariant: every future ends, with a result or with an error that names stage and cause; a request whose deadline has
passed or whose caller left never costs a thread more than saying so. A thread outlives whatever a request does to it.
Whoever takes a batch while works wait wakes another, so that somebody always watches for the next moment to act.

Where it stands: life-of-a-query.md, steps 4 and 8; life-of-an-alert.md, step 6.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import structlog
from prometheus_client import Counter, Histogram

from penstock.infra.telemetry import DEGRADED, about
from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueClosed, QueueFull, RankFailed
from penstock.ranker.job import Job, Turn, result_for
from penstock.ranker.shaping.work import Batch, Deferred, Part, Refused, Shaper, State, Wait, Why, Work
from penstock.schemas.errors import WireError
from penstock.schemas.events import RankClass, RankRequest, RankResult

log = structlog.get_logger(role="ranker")

REQUESTS = Counter("penstock_rank_requests_total", "Rank requests by how they ended", ["class", "outcome"])
SECONDS = Histogram(
    "penstock_rank_seconds",
    "From taking a request in to its answer",
    ["class"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 5, 10, 30),
)
OUTCOMES = ("served", "failed", "expired", "refused", "left")
BY_LOAD = (Why.FLOOR, Why.LOAD, Why.MARGIN, Why.SLACK, Why.BUDGET)  # what took depth that there was
BROKEN_S = 1.0  # after which a shaper that raised is asked again
NO_PLACE_S = 1.0  # after which to come back where as many wait as there are places
OTHERS = 0.5  # of the places, at most, for what nobody waits for: it may wait for an hour, and people need theirs


@dataclass(frozen=True, slots=True)
class Capacity:
    """What is served at once, and how much may wait."""

    lanes: int = 2  # batches at once
    together: int = 1  # works a batch, as the shaper's limits say: each has its thread
    places: int = 1_024  # submitted requests that may wait, each of which holds a thread of the listener
    stuck_s: float = 2.0  # a batch that takes longer gives its lane to another: a call that hangs stops nobody else
    budget: Callable[[], float] = lambda: math.inf  # tokens of a batch
    one_engine: bool = False  # that all lanes share: then a batch has it to itself once the one before has ended
    beside_s: Callable[[], float] = lambda: 0.0  # what a batch takes on the mean before it needs the engine


Describe = Callable[[int, RankRequest, float, float], Work]  # (number, request, arrived_s, deadline_s)
Rank = Callable[[Job, Turn], RankResult]


@dataclass(slots=True, eq=False)
class _Running:
    """A batch under way."""

    batch: Batch
    began_s: float
    left: int  # tasks that have not ended
    tells: bool = True  # what its works take: all that were begun went their way


class RankService:
    """Owns the shaper and the threads. `now_ms` gives epoch milliseconds, `clock` monotonic seconds: a deadline is
    converted once, when its request comes.

    `_changed` guards the shaper and everything below it. No future ends and nothing is ranked while it is held.
    """

    def __init__(
        self,
        shaper: Shaper,
        describe: Describe,
        rank: Rank,
        capacity: Capacity,
        now_ms: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._describe = describe
        self._rank = rank
        self._capacity = capacity
        self._now_ms = now_ms
        self._clock = clock
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._shaper = shaper
        self._jobs: dict[int, Job] = {}  # those that wait, by the number of their work
        self._running: set[_Running] = set()
        self._ready: deque[Callable[[], None]] = deque()  # tasks for the next threads
        self._holding: Tally[bool] = Tally()  # threads of the listener, by whether somebody waits for the answer
        self._ended_s = -math.inf  # when the last batch did
        self._closed = False
        self._tally: Tally[str] = Tally()
        self._last_served_s = clock()
        self.threads = 2 * capacity.lanes * capacity.together  # one half stands in for the other where that is stuck
        self._threads = [
            threading.Thread(target=self._work, name=f"rank-{number}", daemon=True) for number in range(self.threads)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self, timeout_s: float) -> None:
        """Take nothing more, answer what waits, end the threads; wait for all of that so many seconds.

        What still waits then is told that the ranker stops.
        """
        give_up = time.monotonic() + timeout_s
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, give_up - time.monotonic()))
        with self._changed:
            left = [job for job in list(self._jobs.values()) if self._withdraw(job)]
            self._changed.notify_all()
        for job in left:
            self._end(job, "refused", QueueClosed())

    # --- in ----------------------------------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """The answer comes in `job.future`. Raises QueueFull or QueueClosed: then nothing was taken in."""
        try:
            refused = self._offer(job, holds_a_thread=True)
        except QueueClosed:
            self._count(job, "refused")
            raise
        if refused is not None:
            self._count(job, "refused")
            raise QueueFull(refused.retry_after_s, refused.reason.value, refused.reason is Why.TENANT)

    def try_submit(self, job: Job) -> float | None:
        """The same for who keeps the job and tries again: None when it is taken in, else the seconds after which to
        try again, which is no refusal yet.

        Raises QueueClosed.
        """
        refused = self._offer(job)
        return None if refused is None else refused.retry_after_s

    def turn_away(self, job: Job, error: CallerLeft | DeadlinePassed | QueueClosed) -> None:
        """End a job for which there was no room while anybody waited for it."""
        outcome = {CallerLeft: "left", DeadlinePassed: "expired", QueueClosed: "refused"}[type(error)]
        self._end(job, outcome, error)

    def leave(self, job: Job) -> None:
        """Whoever asked has gone: work not begun is dropped, work begun may stop at its next stage."""
        job.left.set()
        with self._changed:
            withdrawn = self._withdraw(job)
        if withdrawn:
            self._end(job, "left", CallerLeft("the caller left before ranking began"))

    def _offer(self, job: Job, *, holds_a_thread: bool = False) -> Refused | None:
        left_ms = job.deadline_ms - self._now_ms()
        if job.urgent and left_ms <= 0:
            self._end(job, "expired", DeadlinePassed("ranking began", late_ms=-left_ms))
            return None
        now_s = self._clock()
        work = self._describe(next(self._numbers), job.request, now_s, now_s + left_ms / 1000)
        work = replace(work, again=True) if job.offered else work
        with self._changed:
            if self._closed:
                raise QueueClosed
            if holds_a_thread and not self._has_place(job):
                return Refused(NO_PLACE_S, Why.QUEUE)
            admission = self._shaper.offer(work, self._clock())
            if isinstance(admission, Refused):
                job.offered = True
                return admission
            job.number, job.came_s, job.allowed_ms = work.number, now_s, float(left_ms)
            job.deferred, job.holds_a_thread = isinstance(admission, Deferred), holds_a_thread
            self._holding[job.urgent] += holds_a_thread
            self._jobs[job.number] = job
            self._changed.notify()
        return None

    def _has_place(self, job: Job) -> bool:
        """Under the lock: whether it may hold a thread of the listener."""
        places = self._capacity.places + self.threads
        if not job.urgent and self._holding[False] >= max(1, int(OTHERS * places)):
            return False
        return self._holding.total() < places

    def _withdraw(self, job: Job) -> bool:
        """Under the lock: whether it waited, and now does not."""
        if self._jobs.pop(job.number, None) is None:
            return False
        self._shaper.withdraw(job.number)
        return True

    def _waited_ms(self, job: Job) -> float:
        return 1000 * max(0.0, self._clock() - job.came_s)

    # --- state -------------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Requests that wait."""
        with self._changed:
            return len(self._jobs)

    def shaping(self) -> State:
        """What the shaper says of itself."""
        with self._changed:
            return self._shaper.state(self._clock())

    def counts(self) -> dict[str, int]:
        """How many requests ended how, since the start."""
        with self._changed:
            return {outcome: self._tally[outcome] for outcome in OUTCOMES}

    @property
    def idle_ms(self) -> int:
        """Since the last request was served, or since the start."""
        with self._changed:
            return int(1000 * (self._clock() - self._last_served_s))

    # --- the threads -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._next()) is not None:
            try:
                task()
            except Exception:  # of the shaper, told that it is done: the callers have their answers
                log.exception("a batch that has ended was not counted")

    def _next(self) -> Callable[[], None] | None:
        """Waits for something to do; None once closed with nothing left that waits."""
        with self._changed:
            while not self._ready and not (self._closed and not self._jobs):
                try:
                    until_s = self._look()
                except Exception as error:
                    log.exception("the shaper broke")
                    until_s = self._clock() + BROKEN_S
                    self._ready.extend(self._failing(error))
                if not self._ready:
                    self._changed.wait(None if until_s == math.inf else max(0.0, until_s - self._clock()))
            task = self._ready.popleft() if self._ready else None
            if self._ready or self._jobs or self._closed:  # somebody else watches on
                self._changed.notify()
            return task

    def _failing(self, error: Exception) -> list[Callable[[], None]]:
        """Under the lock: ends all that wait, since nobody can say which of them the shaper still knows."""
        DEGRADED.labels("ranker", "shaper").inc()
        jobs = list(self._jobs.values())
        for job in jobs:
            with suppress(Exception):
                self._withdraw(job)
        return [partial(self._end, job, "failed", RankFailed("shaping", error)) for job in jobs]

    def _look(self) -> float:
        """Under the lock: asks the shaper for a batch, whose tasks are then ready. Until when there is nothing to do
        otherwise, if nobody wakes us.
        """
        now_s = self._clock()
        stuck_s = self._capacity.stuck_s
        held = [running.began_s + stuck_s for running in self._running if running.began_s + stuck_s > now_s]
        if len(held) >= self._capacity.lanes:
            return min(held)
        decided = self._shaper.batch(now_s, self._capacity.budget())
        if isinstance(decided, Wait):
            return decided.until_s
        # Those that a shaper which broke was not told of have left already.
        late = (self._jobs.pop(work.number, None) for work in decided.expired)
        self._ready.extend(partial(self._expire, job) for job in late if job is not None)
        groups: dict[str | int, tuple[Part, list[Job]]] = {}  # identical works: scored once
        for part in decided.parts:
            if (job := self._jobs.pop(part.work.number, None)) is not None:
                groups.setdefault(part.work.key or part.work.number, (part, []))[1].append(job)
        if groups:
            running = _Running(decided, now_s, len(groups))
            self._running.add(running)
            self._ready.extend(partial(self._run, running, part, jobs) for part, jobs in groups.values())
        elif decided.parts:
            self._shaper.done(decided, now_s, 0.0)
        return now_s

    def _run(self, running: _Running, part: Part, jobs: list[Job]) -> None:
        tells = False
        try:
            tells = self._serve(part, jobs)
        finally:
            with self._changed:
                running.tells &= tells
                running.left -= 1
                if not running.left:
                    self._running.remove(running)
                    self._done(running, self._clock())

    def _done(self, running: _Running, now_s: float) -> None:
        began_s = running.began_s
        if self._capacity.one_engine:
            began_s = max(began_s + self._capacity.beside_s(), self._ended_s)
            self._ended_s = now_s
        self._shaper.done(running.batch, now_s, now_s - began_s if running.tells else 0.0)  # 0: nothing is learnt

    def _serve(self, part: Part, jobs: list[Job]) -> bool:
        """The first of these identical ones that gets an answer answers all, people's before the others. Whether it
        went the whole way, or as far as its time allowed: then the seconds tell what its tokens take.
        """
        expired = False
        jobs.sort(key=lambda job: not job.urgent)
        while jobs:
            job = jobs[0]
            with about(job.request):
                try:
                    result = self._rank(job, self._turn(part, jobs))
                except DeadlinePassed as error:
                    self._end(jobs.pop(0), "expired", error)
                    expired = True
                    continue
                except CallerLeft as error:
                    self._end(jobs.pop(0), "left", error)
                    continue
                except (RankFailed, WireError) as error:
                    failure: Exception = error
                except Exception as error:  # whatever it is, the callers are told and the thread lives on
                    log.exception("a request broke its stage")
                    failure = RankFailed("rank", error)
                else:
                    self._answer(job, result)
                    for other in jobs[1:]:
                        self._answer(other, result_for(other.request, result))
                    return not job.fell_back
            for one in jobs:
                self._end(one, "failed", failure)
            return False
        return expired

    def _turn(self, part: Part, jobs: list[Job]) -> Turn:
        """Of the first of these identical ones."""
        job = jobs[0]
        deadline_s = job.came_s + job.allowed_ms / 1000 if job.urgent or job.refreshes else math.inf
        depth = part.depth if part.depth < part.work.wanted else None  # there may be more by now
        alerts = all(one.request.class_ is RankClass.ALERT and not one.refreshes for one in jobs)
        may_be_stale = alerts and (job.deferred or part.reason in BY_LOAD)
        return Turn(self._waited_ms(job), deadline_s, depth, part.reason, may_be_stale)

    def _answer(self, job: Job, result: RankResult) -> None:
        waited_ms = self._waited_ms(job)
        late_ms = waited_ms - job.allowed_ms
        if late_ms > 0 and not job.urgent:
            DEGRADED.labels("ranker", "late").inc()
            late = f"late: answered {late_ms:.0f} ms after its deadline"
            result = replace(result, degraded=(*result.degraded, late))
        SECONDS.labels(job.request.class_.value).observe(waited_ms / 1000)
        self._count(job, "served")
        job.future.set_result(result)

    def _expire(self, job: Job) -> None:
        waited_ms = self._waited_ms(job)
        late_ms = max(0, round(waited_ms - job.allowed_ms))
        self._end(job, "expired", DeadlinePassed("ranking began", late_ms=late_ms, waited_ms=waited_ms))

    def _end(self, job: Job, outcome: str, error: Exception) -> None:
        self._count(job, outcome)
        job.future.set_exception(error)

    def _count(self, job: Job, outcome: str) -> None:
        REQUESTS.labels(job.request.class_.value, outcome).inc()
        with self._changed:
            self._tally[outcome] += 1
            self._holding[job.urgent] -= job.holds_a_thread
            if outcome == "served":
                self._last_served_s = self._clock()
