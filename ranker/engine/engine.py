"""The engine: requests from many threads through one forward thread.

    1. submit    a caller's thread: refused at once when too many tokens wait, else it waits for its turn (waiting.py)
    2. drop      what expired or whose caller left, before it costs a forward
    3. gather    under load, at most GATHER_S after the last forward, so that its callers' next requests share one
    4. pack      the items whose turn it is (turns.py), laid out (plan.py)
    5. launch    at once while the backend has room: it packs and launches the next while it computes one (flights.py)
    6. land      the oldest in flight, when there is no room for another or nothing to launch
    7. reply     to every request that has all its scores

Invariant: every request that was taken in is answered, with all its scores or with an error. When a forward fails, the
engine is unready until the known answer comes out right again, of the backend as it is or else of one made anew
(keeper.py); the requests in flight are then tried once more, each alone in flight, so that one which breaks forwards
breaks no other's. While a forward hangs, which nothing can end, the engine is unready and takes nothing in.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
import structlog

from penstock.infra.telemetry import STAGE_SECONDS
from penstock.ranker.backends.scorer import nobody_left
from penstock.ranker.engine.backend import Backend
from penstock.ranker.engine.errors import EngineClosed, EngineStalled, ForwardFailed, ItemTooLong
from penstock.ranker.engine.flights import Flights
from penstock.ranker.engine.keeper import BACK_OFF_S, Keeper
from penstock.ranker.engine.plan import MalformedRequest, Request, by_request, check, plan
from penstock.ranker.engine.turns import Answer, Part, Pending, choose, given_back, taken
from penstock.ranker.engine.waiting import REQUESTS, Waiting, too_late
from penstock.ranker.errors import DeadlinePassed, NonFiniteScore

log = structlog.get_logger(role="ranker")

GATHER_S = 0.001
CHECK_EVERY_S = 10.0  # idle this long, the known answer is asked anew
STALLED_S = 30.0  # a forward that takes longer has hung
ATTEMPTS = 2  # forwards that may fail under a request
LONGEST_WAIT_S = 30.0  # of a request without a deadline


@dataclass(frozen=True, slots=True)
class Limits:
    budget: int = 4_096  # tokens a forward
    interactive: int = 4_096  # tokens a forward of interactive requests
    waiting: int = 131_072  # tokens that may wait, those in flight included


@dataclass(frozen=True, slots=True)
class EngineStatus:
    ready: bool
    reason: str  # empty when ready
    waiting: int  # requests
    waiting_tokens: int
    forwards: int  # since the start
    restarts: int  # backends made anew
    checked_s: float  # of the engine's clock: when the known answer last came out right


class _Turn(Enum):
    """What the forward thread does next, where it does not launch parts of requests."""

    LAND = "land"
    CHECK = "check"  # ask the known answer
    END = "end"


class Engine:
    """Owns what waits, what is in flight, and the forward thread, which alone calls the backend once started.

    `known` is a request that is asked now and again to see whether the scores are still the same. `clock` gives
    monotonic seconds.
    """

    def __init__(
        self,
        make_backend: Callable[[], Backend],
        known: Request,
        limits: Limits | None = None,
        *,
        check_every_s: float = CHECK_EVERY_S,
        back_off_s: Sequence[float] = BACK_OFF_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits or Limits()
        self._known = known
        self._check_every_s = check_every_s
        self._clock = clock
        self._waiting = Waiting(self.limits.waiting)
        self._flights = Flights(clock)
        self._keeper = Keeper(make_backend, known, self.limits, self._flights, back_off_s, clock)
        self._closed = "not started"  # why nothing is taken in; changes under the lock of what waits
        self._shared = False  # whether the last forward held several requests
        self._suspect = False  # a score was not finite: ask the known answer before more work
        self._worked_s = clock()  # when the last forward landed
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)

    # --- what callers do ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the backend, warm it up, take the known answer, begin.

        Raises what making the backend raises, NonFiniteScore, ItemTooLong.
        """
        self._check_length(self._known)
        self._keeper.begin()
        self._worked_s = self._clock()
        self._closed = ""
        self._thread.start()

    def submit(
        self,
        request: Request,
        deadline_s: float = math.inf,
        has_left: Callable[[], bool] = nobody_left,
    ) -> Pending:
        """Take a request in; its `future` ends with an Answer or an error: DeadlinePassed, CallerLeft, NonFiniteScore,
        ForwardFailed, EngineClosed, and MalformedRequest for what only the backend can know.

        `deadline_s` is of the engine's clock; what is not finite is LONGEST_WAIT_S from now. Raises MalformedRequest,
        ItemTooLong, EngineFull, EngineStalled, EngineClosed: then nothing was taken in.
        """
        check(request)
        self._check_length(request)
        now = self._clock()
        deadline = deadline_s if math.isfinite(deadline_s) else now + LONGEST_WAIT_S
        pending = Pending(request, deadline, now, 0, has_left)
        pending.future.set_running_or_notify_cancel()  # whoever leaves says so by `leave`
        if not request.items:
            pending.future.set_result(Answer(pending.logits, {}, 0))
            return pending
        with self._waiting.changed:
            if self._closed:
                raise EngineClosed
            if (hung_s := self._flights.hung_s(now)) > STALLED_S:
                self._waiting.drop(now)  # the forward thread does not come to it
                REQUESTS.labels("refused").inc()
                raise EngineStalled(hung_s)
            self._waiting.take(pending, now)
        return pending

    def ask(
        self,
        request: Request,
        deadline_s: float = math.inf,
        has_left: Callable[[], bool] = nobody_left,
    ) -> Answer:
        """`submit`, and wait no longer than the deadline. Raises what either raises."""
        pending = self.submit(request, deadline_s, has_left)
        try:
            wait_s = max(0.0, pending.deadline_s - self._clock())
            return pending.future.result(min(wait_s, threading.TIMEOUT_MAX))
        except DeadlinePassed:
            raise
        except TimeoutError as error:
            pending.leave()
            raise too_late(pending, self._clock()) from error

    def status(self) -> EngineStatus:
        with self._waiting.changed:
            trouble = self._closed or self._keeper.trouble
            if not trouble and (hung_s := self._flights.hung_s(self._clock())) > STALLED_S:
                trouble = f"a forward has not come back for {hung_s:.0f} s"
            return EngineStatus(
                ready=not trouble,
                reason=trouble,
                waiting=len(self._waiting),
                waiting_tokens=self._waiting.tokens,
                forwards=self._flights.landed,
                restarts=self._keeper.restarts,
                checked_s=self._keeper.checked_s,
            )

    def close(self, timeout_s: float) -> None:
        """Take nothing more in, answer what waits, end the thread. What is not answered in time fails."""
        with self._waiting.changed:
            self._closed = "stopping"
            self._waiting.changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        self._waiting.end_all("closed", EngineClosed())

    # --- the forward thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            parts: list[Part] = []
            try:
                turn = self._next()
                if turn is _Turn.END:
                    return
                if turn is _Turn.CHECK:
                    self._suspect = False
                    self._keeper.check()
                elif turn is _Turn.LAND:
                    self._land()
                else:
                    parts = turn
                    self._launch(parts)
            except BaseException as error:  # SystemExit too: nothing may end this thread
                if parts and isinstance(error, MalformedRequest):
                    self._refuse(parts, error)
                    continue
                parts += self._flights.abandon()
                log.exception("a forward failed", requests=len(parts))
                error = error.with_traceback(None)  # its frames hold the backend, whose memory the next one needs
                self._fail(parts, error)
                self._shared = False
                self._keeper.revive(error, self._rest)

    def _next(self) -> list[Part] | _Turn:
        """The parts of the next forward, or what else is to be done; waits until there is something."""
        waiting, flights = self._waiting, self._flights
        with waiting.changed:
            while True:
                if len(flights) >= self._keeper.in_flight or flights.alone:
                    return _Turn.LAND
                now = self._clock()
                waiting.drop(now)
                ready = [] if self._suspect else waiting.ready()
                if ready:
                    wait_s = self._gather_s(ready, now)
                    if wait_s <= 0:
                        parts = choose(ready, self.limits.budget, self.limits.interactive)
                        if flights and parts[0].of.alone:
                            return _Turn.LAND
                        taken(parts)
                        for part in parts:
                            if "queue" not in part.of.spent_ms:
                                part.of.spend("queue", now - part.of.arrived_s)
                        return parts
                elif flights:
                    return _Turn.LAND
                elif self._closed and not len(waiting):
                    return _Turn.END
                else:
                    wait_s = max(self._worked_s, self._keeper.checked_s) + self._check_every_s - now
                    if self._suspect or wait_s <= 0:
                        return _Turn.CHECK
                waiting.changed.wait(min(wait_s, threading.TIMEOUT_MAX))

    def _gather_s(self, ready: Sequence[Pending], now: float) -> float:
        """How long to wait for company; nothing when there is no load or a forward is full already."""
        if self._closed or not (self._shared or len(ready) > 1):
            return 0.0
        if self._waiting.tokens - self._flights.tokens >= min(self.limits.budget, self.limits.interactive):
            return 0.0
        return self._worked_s + GATHER_S - now

    def _launch(self, parts: Sequence[Part]) -> None:
        began = self._clock()
        requests = [part.request for part in parts]
        [forward] = plan(requests, self.limits.budget, self.limits.interactive, checked=True)  # one, by `choose`
        packed = self._clock()
        for part in parts:
            self._spent(part.of, "pack", packed - began)
        self._flights.launch(self._keeper.backend, forward, parts)

    def _land(self) -> None:
        flight, logits = self._flights.land()
        alone_s = max(flight.launched_s, self._worked_s)  # since when no other was before it
        self._worked_s = self._clock()
        self._shared = len(flight.parts) > 1
        done = []
        for number, items, of_items in by_request(flight.forward, logits):
            part = flight.parts[number]
            one = part.of
            one.logits[np.array(part.items)[items]] = of_items
            one.unscored -= len(items)
            if not one.forwards:  # until now it was queued behind another in flight
                one.spend("queue", alone_s - flight.launched_s)
                STAGE_SECONDS.labels("engine", "queue").observe(one.spent_ms["queue"] / 1000)
            one.forwards += 1
            self._spent(one, "forward", self._worked_s - alone_s)
            if not one.unscored:
                done.append(one)
        self._reply(done)

    def _reply(self, done: Sequence[Pending]) -> None:
        for one in done:
            bad = ~np.isfinite(one.logits)
            if bad.any():
                self._suspect = True
                first = int(np.flatnonzero(bad)[0])
                error = NonFiniteScore(
                    f"{int(bad.sum())} of {len(bad)} logits are not finite (item {first}: {one.logits[first]}): "
                    "the weights or their input are damaged"
                )
                self._waiting.end(one, "failed", error)
                continue
            self._spent(one, "reply", self._clock() - self._worked_s)
            self._waiting.end(one, "served", Answer(one.logits, dict(one.spent_ms), one.forwards))

    def _fail(self, parts: Sequence[Part], cause: BaseException) -> None:
        """Their forwards gave nothing: back to the queue to be tried alone, or answered with the cause."""
        with self._waiting.changed:
            given_back(parts)
            for one in dict.fromkeys(part.of for part in parts):
                one.alone = True
                one.failures += 1
                if one.failures >= ATTEMPTS:
                    self._waiting.end(one, "failed", ForwardFailed(cause, one.failures))

    def _refuse(self, parts: Sequence[Part], error: MalformedRequest) -> None:
        """One of them cannot be scored: tried alone, it is known which."""
        with self._waiting.changed:
            given_back(parts)
            for part in parts:
                part.of.alone = True
            if len(parts) == 1:
                self._waiting.end(parts[0].of, "failed", error)

    def _rest(self, seconds: float) -> bool:
        """Answer the late meanwhile; False when the engine stops, and then nothing waits any more."""
        waiting, until = self._waiting, self._clock() + seconds
        with waiting.changed:
            while (now := self._clock()) < until:
                waiting.drop(now)
                if self._closed:
                    waiting.end_all("closed", EngineClosed())
                    return False
                late_s = waiting.next_deadline_s()
                waiting.changed.wait(until - now if late_s is None else min(until - now, max(0.001, late_s - now)))
        return True

    def _check_length(self, request: Request) -> None:
        room = self.limits.interactive if request.interactive else self.limits.budget
        longest = len(request.prefix) + max((len(item) for item in request.items), default=0)
        if longest > room:
            raise ItemTooLong(longest, room)

    def _spent(self, one: Pending, stage: str, seconds: float) -> None:
        one.spend(stage, seconds)
        STAGE_SECONDS.labels("engine", stage).observe(seconds)
