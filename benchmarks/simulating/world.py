"""A policy under a virtual clock: clients that retry, Kafka that waits, and one engine.

    1. a request is offered at its arrival
    2. a refused client comes again after retry-after (and a little more, so that not all come at once), at most RETRIES
       times; each try has a deadline of its own. One whose answer is late or who was told "expired" tries again too
    3. what Kafka brings (recommendations, alerts) stays in its partition when refused: the class is paused for
       retry-after, PAUSE_S at most, and then read on, in order. A recommendation whose deadline has passed is answered
       as expired
    4. whenever the engine is free the policy says what is next; it takes what the plant says for those tokens
    5. all of a batch's requests are answered at its end

Deterministic: the same workload, plant and policy give the same outcome.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulating.plant import BUDGET, ITEM_TOKENS, PREFIX_TOKENS, Plant
from benchmarks.simulating.workload import (
    ALERT_ITEMS,
    CEILING,
    CLASSES,
    DEADLINES,
    FLOOR,
    KINDS,
    Workload,
    relevance,
)
from penstock.ranker.shaping.work import Admitted, Batch, Deferred, Refused, Shaper, State, Wait, Work
from penstock.schemas.events import RankClass

Floats = NDArray[np.float64]

RETRIES = 2
PAUSE_S = 1.0  # of a partition, at most: room may come sooner than was promised
INTERACTIVE, RECOMMENDATION, INSTANT, DIGEST = range(len(KINDS))


@dataclass(slots=True)
class Outcome:
    """What became of each request of the workload; arrays of its length."""

    workload: Workload
    answered_s: Floats  # when the answer in time came, or the last late one; NaN: never
    waited_s: Floats  # of that answer, from its own try
    depth: NDArray[np.int16]
    in_time: NDArray[np.bool_]
    tries: NDArray[np.int8]
    deferred: NDArray[np.bool_]
    late_s: list[float] = field(default_factory=list)  # latencies of all interactive answers, late ones too
    busy_s: float = 0.0  # within the horizon, as the next two
    tokens: float = 0.0
    batches: int = 0
    refusals: int = 0
    expired: int = 0
    ended_s: float = 0.0
    samples: list[tuple[float, State]] = field(default_factory=list)
    served: list[tuple[float, int]] = field(default_factory=list)  # (begun, depth) of each interactive part


class World:
    """Owns the clock and everything but the policy."""

    def __init__(
        self,
        shaper: Shaper,
        workload: Workload,
        plant: Plant,
        seed: int,
        *,
        slowdown: Callable[[float], float] | None = None,
        sample_every_s: float = 0.0,
        alike: bool = False,
    ) -> None:
        """`slowdown`: by how much the engine is slower at a time. `alike`: all queries have the same margins."""
        self._shaper, self._plant, self._load = shaper, plant, workload
        self._rng = np.random.default_rng((seed, 12))
        self._slowdown = slowdown
        self._every_s = sample_every_s
        count = len(workload)
        self.outcome = Outcome(
            workload,
            np.full(count, np.nan),
            np.full(count, np.nan),
            np.zeros(count, np.int16),
            np.zeros(count, bool),
            np.zeros(count, np.int8),
            np.zeros(count, bool),
        )
        margins = relevance()[1]
        self._margins = np.repeat(margins.mean(0)[None], len(margins), axis=0) if alike else margins
        self._arrived = workload.arrived_s.tolist()
        self._kinds = workload.kind.tolist()
        self._tenants = [f"t{tenant}" for tenant in workload.tenant.tolist()]
        self._queries = workload.query.tolist()
        self._hits = workload.hits.tolist()
        self._heap: list[tuple[float, int, int]] = []  # (when, tie, request that tries again; -1: a partition goes on)
        self._ties = 0
        self._held: dict[RankClass, deque[int]] = {RankClass.RECOMMENDATION: deque(), RankClass.ALERT: deque()}
        self._paused_s = dict.fromkeys(self._held, 0.0)
        self._works: dict[int, int] = {}  # the number of a work: its request
        self._numbers = 0
        self._draws: list[float] = []

    def run(self, until_s: float) -> Outcome:
        """Until nothing happens any more, or `until_s`."""
        now, at, count = 0.0, 0, len(self._arrived)
        batch: Batch | None = None
        ends_s, wake_s, took_s, sample_s = math.inf, math.inf, 0.0, 0.0
        while True:
            arrives_s = self._arrived[at] if at < count else math.inf
            again_s = self._heap[0][0] if self._heap else math.inf
            now = max(now, min(arrives_s, again_s, ends_s, wake_s))
            if now > until_s or now == math.inf:
                break
            if self._every_s and now >= sample_s:
                self.outcome.samples.append((now, self._shaper.state(now)))
                sample_s = (now // self._every_s + 1) * self._every_s
            if ends_s <= now:
                assert batch is not None
                self._shaper.done(batch, now, took_s)
                self._answer(batch, now)
                batch, ends_s = None, math.inf
            while at < count and self._arrived[at] <= now:
                self._comes(at, now)
                at += 1
            while self._heap and self._heap[0][0] <= now:
                request = heapq.heappop(self._heap)[2]
                if request >= 0:
                    self._offer(request, now)
                else:
                    self._go_on(now)
            wake_s = math.inf
            while batch is None:
                found = self._shaper.batch(now, BUDGET)
                if isinstance(found, Wait):
                    wake_s = found.until_s if found.until_s > now else now + 1e-4
                    break
                for work in found.expired:
                    self.outcome.expired += 1
                    self._missed(self._works.pop(work.number), now)
                if found.parts:
                    batch = found
                    slow = self._slowdown(now) if self._slowdown else 1.0
                    took_s = slow * self._plant.seconds(found.tokens, self._draw())
                    ends_s = now + took_s
                    if now < self._load.horizon_s:
                        self.outcome.busy_s += took_s
                        self.outcome.tokens += found.tokens
                        self.outcome.batches += 1
        self.outcome.ended_s = until_s  # nothing more happens before it
        return self.outcome

    def _comes(self, request: int, now: float) -> None:
        if self._kinds[request] == INTERACTIVE:
            self._offer(request, now)
            return
        lane = CLASSES[KINDS[self._kinds[request]]]
        if self._held[lane] or now < self._paused_s[lane]:
            self._held[lane].append(request)
        else:
            self._offer(request, now)

    def _go_on(self, now: float) -> None:
        for lane, held in self._held.items():
            while held and now >= self._paused_s[lane]:
                request = held[0]
                late = self._arrived[request] + DEADLINES[KINDS[self._kinds[request]]] <= now
                if late and lane is RankClass.RECOMMENDATION:
                    self.outcome.expired += 1
                    held.popleft()
                elif self._offer(request, now):
                    held.popleft()

    def _offer(self, request: int, now: float) -> bool:
        kind = self._kinds[request]
        since = now if kind == INTERACTIVE else self._arrived[request]  # a client's try has a deadline of its own
        items = ALERT_ITEMS if kind == INSTANT else CEILING
        work = Work(
            number=self._numbers,
            tenant=self._tenants[request],
            class_=CLASSES[KINDS[kind]],
            arrived_s=since,
            deadline_s=since + DEADLINES[KINDS[kind]],
            fixed=float(PREFIX_TOKENS),
            item=float(ITEM_TOKENS),
            wanted=items,
            floor=FLOOR,
            margins=self._margins[self._queries[request], :items],
            hits=self._hits[request],
        )
        self._numbers += 1
        said = self._shaper.offer(work, now)
        if isinstance(said, Refused):
            self.outcome.refusals += 1
            if kind == INTERACTIVE:
                self.outcome.tries[request] += 1
                if self.outcome.tries[request] <= RETRIES:
                    self._later(now + said.retry_after_s * (1 + 0.5 * self._draw()), request)
            else:
                lane = work.class_
                self._paused_s[lane] = now + min(max(1e-3, said.retry_after_s), PAUSE_S)
                self._later(self._paused_s[lane], -1)
                if not self._held[lane] or self._held[lane][0] != request:
                    self._held[lane].appendleft(request)
            return False
        if isinstance(said, Deferred):
            self.outcome.deferred[request] = True
        else:
            assert isinstance(said, Admitted)
        self._works[work.number] = request
        return True

    def _missed(self, request: int, now: float) -> None:
        """An interactive client whose answer came late, or not at all, asks again."""
        if self._kinds[request] == INTERACTIVE:
            self.outcome.tries[request] += 1
            if self.outcome.tries[request] <= RETRIES:
                self._later(now + 0.1 * (1 + self._draw()), request)

    def _answer(self, batch: Batch, now: float) -> None:
        out = self.outcome
        for part in batch.parts:
            work = part.work
            request = self._works.pop(work.number)
            in_time = now <= work.deadline_s
            if work.class_ is RankClass.INTERACTIVE:
                out.late_s.append(now - work.arrived_s)
                if self._every_s:
                    out.served.append((batch.began_s, part.depth))
            out.answered_s[request] = now
            out.waited_s[request] = now - work.arrived_s
            out.depth[request] = part.depth
            out.in_time[request] = in_time and part.depth >= work.least
            if not in_time:
                self._missed(request, now)

    def _later(self, when: float, request: int) -> None:
        self._ties += 1
        heapq.heappush(self._heap, (when, self._ties, request))

    def _draw(self) -> float:
        if not self._draws:
            self._draws = self._rng.random(4_096).tolist()
        return self._draws.pop()
