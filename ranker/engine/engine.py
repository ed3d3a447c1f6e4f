"""The engine: requests from many threads through one forward thread.

    1. submit    a caller's thread: refused at once when too many tokens wait, else it waits for its turn
    2. drop      what expired or whose caller left, before it costs a forward
    3. gather    under load, at most GATHER_S after the last forward, so that its callers' next requests share one
    4. pack      the items whose turn it is (turns.py), laid out (plan.py)
    5. forward   the backend
    6. reply     to every request that has all its scores

Invariant: every request that was taken in is answered, with all its scores or with an error. When a forward fails, the
engine is unready until the known answer comes out right again, of the backend as it is or else of one made anew; the
requests in the forward are then tried once more, each alone, so that one which breaks forwards breaks no other's. While
a forward hangs, which nothing can end, the engine is unready and takes nothing in.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Histogram

from penstock.infra.telemetry import DEGRADED, STAGE_SECONDS
from penstock.ranker.backends.scorer import nobody_left, probability
from penstock.ranker.engine.errors import EngineClosed, EngineFull, EngineStalled, ForwardFailed, ItemTooLong
from penstock.ranker.engine.plan import Forward, MalformedRequest, Request, check, plan
from penstock.ranker.engine.turns import Answer, Part, Pending, choose, given_back, taken
from penstock.ranker.errors import CallerLeft, DeadlinePassed, NonFiniteScore

if TYPE_CHECKING:  # it brings torch, which this file does not need
    from penstock.ranker.engine.forward import Backend

log = structlog.get_logger(role="ranker")

GATHER_S = 0.001
CHECK_EVERY_S = 10.0  # idle this long, the known answer is asked anew
STALLED_S = 30.0  # a forward that takes longer has hung
ATTEMPTS = 2  # forwards that may fail under a request
TOLERANCE = 1e-3  # of the known answer's probability
LONGEST_WAIT_S = 30.0  # of a request without a deadline
BACK_OFF_S = (0.1, 0.5, 1.0, 5.0)  # between attempts to make a backend, the last again and again

REQUESTS = Counter("penstock_engine_requests_total", "Scoring requests by how they ended", ["outcome"])
RESTARTS = Counter("penstock_engine_restarts_total", "Backends made anew after a failure")
WAITING_TOKENS = Gauge("penstock_engine_waiting_tokens", "Tokens of requests taken in and not answered")
FORWARD_TOKENS = Histogram(
    "penstock_engine_forward_tokens", "Tokens a forward", buckets=(64, 256, 1_024, 2_048, 4_096, 8_192, 16_384, 65_536)
)


@dataclass(frozen=True, slots=True)
class Limits:
    budget: int = 4_096  # tokens a forward
    interactive: int = 4_096  # tokens a forward of interactive requests
    waiting: int = 131_072  # tokens that may wait, those in the forward included


@dataclass(frozen=True, slots=True)
class EngineStatus:
    ready: bool
    reason: str  # empty when ready
    waiting: int  # requests
    waiting_tokens: int
    forwards: int  # since the start
    restarts: int  # backends made anew
    checked_s: float  # of the engine's clock: when the known answer last came out right


class Engine:
    """Owns the queue, the forward thread and the backend, which that thread alone calls once started.

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
        self._make_backend = make_backend
        self._known = known
        self._limits = limits or Limits()
        self._check_every_s = check_every_s
        self._back_off_s = back_off_s
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: list[Pending] = []
        self._tokens = 0
        self._arrivals = 0
        self._running = False
        self._trouble = "not started"
        self._shared = False  # whether the last forward held several requests
        self._suspect = False  # a score was not finite: ask the known answer before more work
        self._worked_s = clock()  # end of the last forward
        self._forward_since_s: float | None = None
        self._checked_s = 0.0
        self._forwards = 0
        self._restarts = 0
        self._backend: Backend | None = None
        self._expected = np.empty(0)
        self._thread = threading.Thread(target=self._run, name="forward", daemon=True)

    # --- what callers do ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Make the backend, warm it up, take the known answer, begin.

        Raises what making the backend raises, NonFiniteScore, ItemTooLong.
        """
        self._check_length(self._known)
        self._backend = self._make_backend()
        for request in self._warm_up():
            self._logits_of(self._backend, request)
        self._expected = probability(self._logits_of(self._backend, self._known))
        self._checked_s = self._worked_s = self._clock()
        self._running, self._trouble = True, ""
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
        cost = pending.cost
        with self._changed:
            if not self._running:
                raise EngineClosed
            hung_s = self._hung_s(now)
            if hung_s > STALLED_S or self._tokens + cost > self._limits.waiting:
                self._drop(now)  # the forward thread may be long in coming to it
            if hung_s > STALLED_S:
                REQUESTS.labels("refused").inc()
                raise EngineStalled(hung_s)
            if self._tokens + cost > self._limits.waiting:
                REQUESTS.labels("refused").inc()
                raise EngineFull(self._tokens, cost, self._limits.waiting)
            pending.number = self._arrivals
            self._arrivals += 1
            self._waiting.append(pending)
            self._count_tokens(cost)
            self._changed.notify_all()
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
            raise _too_late(pending, self._clock()) from error

    def status(self) -> EngineStatus:
        with self._changed:
            trouble = self._trouble
            if not trouble and (hung_s := self._hung_s(self._clock())) > STALLED_S:
                trouble = f"a forward has not come back for {hung_s:.0f} s"
            return EngineStatus(
                ready=not trouble,
                reason=trouble,
                waiting=len(self._waiting),
                waiting_tokens=self._tokens,
                forwards=self._forwards,
                restarts=self._restarts,
                checked_s=self._checked_s,
            )

    @property
    def limits(self) -> Limits:
        return self._limits

    def close(self, timeout_s: float) -> None:
        """Take nothing more in, answer what waits, end the thread. What is not answered in time fails."""
        with self._changed:
            self._running = False
            self._trouble = "stopping"
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
        with self._changed:
            for one in list(self._waiting):
                self._end(one, "closed", EngineClosed())

    # --- the forward thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            parts: list[Part] | None = []
            try:
                parts = self._next()
                if parts is None:
                    return
                if parts:
                    self._work(parts)
                else:
                    self._check()
            except BaseException as error:  # SystemExit too: nothing may end this thread
                parts = parts or []
                if parts and isinstance(error, MalformedRequest):
                    self._refuse(parts, error)
                    continue
                log.exception("a forward failed", requests=len(parts))
                self._fail(parts, error)
                self._revive(error)

    def _work(self, parts: Sequence[Part]) -> None:
        began = self._clock()
        forwards = plan([part.request for part in parts], self._limits.budget, self._limits.interactive)
        packed = self._clock()
        for part in parts:
            self._spent(part.of, "pack", packed - began)
        for forward in forwards:  # one, by what `choose` lets in
            logits = self._forward(self._the_backend(), forward)
            for (number, at), logit in zip(forward.scores_of.tolist(), logits.tolist(), strict=True):
                parts[number].of.logits[parts[number].items[at]] = logit
        self._worked_s = self._clock()
        self._shared = len(parts) > 1
        for part in parts:
            part.of.forwards += len(forwards)
            self._spent(part.of, "forward", self._worked_s - packed)
        self._reply([part.of for part in parts if not part.of.remaining])

    def _next(self) -> list[Part] | None:
        """The parts of the next forward, none when the known answer is due, None when closed and empty."""
        with self._changed:
            while True:
                now = self._clock()
                self._drop(now)
                if not self._running and not self._waiting:
                    return None
                if self._suspect:
                    return []
                if self._waiting:
                    wait_s = self._gather_s(now)
                    if wait_s <= 0:
                        parts = choose(self._waiting, self._limits.budget, self._limits.interactive)
                        taken(parts)
                        for part in parts:
                            if part.of.began_s is None:
                                part.of.began_s = now
                                self._spent(part.of, "queue", now - part.of.arrived_s)
                        return parts
                else:
                    wait_s = max(self._worked_s, self._checked_s) + self._check_every_s - now
                    if wait_s <= 0:
                        return []
                self._changed.wait(min(wait_s, threading.TIMEOUT_MAX))

    def _gather_s(self, now: float) -> float:
        """How long to wait for company; nothing when there is no load or a forward is full already."""
        if not self._running or not (self._shared or len(self._waiting) > 1):
            return 0.0
        if self._tokens >= min(self._limits.budget, self._limits.interactive):
            return 0.0
        return self._worked_s + GATHER_S - now

    def _drop(self, now: float) -> None:
        """Answer whoever came too late or left. The lock is held."""
        for one in list(self._waiting):
            try:
                gone = one.gone
            except BaseException as error:  # the caller's own function
                self._end(one, "left", CallerLeft(f"whether the caller left: {type(error).__name__}: {error}"))
                continue
            if gone:
                self._end(one, "left", CallerLeft("the caller left before its forward"))
            elif one.deadline_s <= now:
                self._end(one, "expired", _too_late(one, now))

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
                with self._changed:
                    self._end(one, "failed", error)
                continue
            self._spent(one, "reply", self._clock() - self._worked_s)
            with self._changed:
                self._end(one, "served", Answer(one.logits, dict(one.spent_ms), one.forwards))

    def _fail(self, parts: Sequence[Part], cause: BaseException) -> None:
        """Their forward gave nothing: back to the queue to be tried alone, or answered with the cause."""
        with self._changed:
            given_back(parts)
            for part in parts:
                one = part.of
                one.alone = True
                one.failures += 1
                if one.failures >= ATTEMPTS:
                    self._end(one, "failed", ForwardFailed(cause, one.failures))

    def _refuse(self, parts: Sequence[Part], error: MalformedRequest) -> None:
        """One of them cannot be scored: tried alone, it is known which."""
        with self._changed:
            given_back(parts)
            for part in parts:
                part.of.alone = True
            if len(parts) == 1:
                self._end(parts[0].of, "failed", error)

    def _end(self, one: Pending, outcome: str, end: Answer | Exception) -> None:
        """Answer a request, once. The lock is held."""
        if one not in self._waiting:
            return
        self._waiting.remove(one)
        self._count_tokens(-one.cost)
        REQUESTS.labels(outcome).inc()
        if isinstance(end, Answer):
            one.future.set_result(end)
        else:
            one.future.set_exception(end)

    # --- health ------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        """Ask the known answer. Raises what the backend raises, and NonFiniteScore when it answers otherwise."""
        self._suspect = False
        self._ask_known(self._the_backend())

    def _revive(self, cause: BaseException) -> None:
        """Unready until the known answer comes: of the backend there is, or of one made anew, tried until it does."""
        DEGRADED.labels("ranker", "engine").inc()
        self._shared = False
        self._tell(f"a forward failed: {type(cause).__name__}: {cause}")
        attempt = 0
        while True:
            try:
                if self._backend is None:
                    self._backend = self._make_backend()
                    self._restarts += 1
                    RESTARTS.inc()
                self._ask_known(self._backend)
                break
            except BaseException as error:
                self._backend = None  # its memory is needed for the next
                self._tell(f"making the backend anew: {type(error).__name__}: {error}")
                if attempt and not self._wait_a_while(self._back_off_s[min(attempt, len(self._back_off_s)) - 1]):
                    return
                attempt += 1
        self._tell("")

    def _wait_a_while(self, seconds: float) -> bool:
        """Answer the late meanwhile; False when the engine stops, and then nothing waits any more."""
        until = self._clock() + seconds
        with self._changed:
            while (now := self._clock()) < until:
                self._drop(now)
                if not self._running:
                    for one in list(self._waiting):
                        self._end(one, "closed", EngineClosed())
                    return False
                self._changed.wait(min([until - now, *(max(0.001, one.deadline_s - now) for one in self._waiting)]))
        return True

    def _tell(self, trouble: str) -> None:
        with self._changed:
            if self._running:
                self._trouble = trouble

    def _ask_known(self, backend: Backend) -> None:
        p = probability(self._logits_of(backend, self._known))
        if not np.allclose(p, self._expected, rtol=0, atol=TOLERANCE):
            raise NonFiniteScore(f"a known request scores {p.tolist()}, at the start {self._expected.tolist()}")
        self._checked_s = self._clock()

    def _warm_up(self) -> list[Request]:
        """Requests of one item and of as many as the forwards may hold, as warm as the first real ones need it."""
        known = self._known
        made = [known]
        for kind, room in ((True, self._limits.interactive), (False, self._limits.budget)):
            item = known.items[0]
            number = max(1, (room - len(known.prefix)) // len(item))
            made.append(Request(known.prefix, (item,) * number, kind))
        return made

    def _logits_of(self, backend: Backend, request: Request) -> NDArray[np.float64]:
        logits = np.full(len(request.items), np.nan)
        for forward in plan([request], self._limits.budget, self._limits.interactive):
            logits[forward.scores_of[:, 1]] = self._forward(backend, forward)
        if not np.isfinite(logits).all():
            raise NonFiniteScore(f"a known request has logits {logits.tolist()}: the weights are damaged")
        return logits

    def _forward(self, backend: Backend, forward: Forward) -> NDArray[np.float64]:
        self._forward_since_s = self._clock()
        try:
            logits = backend.logits(forward)
        finally:
            self._forward_since_s = None
        if logits.shape != forward.last.shape:
            raise ValueError(f"the backend gave logits of shape {logits.shape} for {len(forward.last)} items")
        self._forwards += 1
        FORWARD_TOKENS.observe(len(forward))
        return logits

    def _hung_s(self, now: float) -> float:
        """How long the forward takes that is under way, 0 when none is."""
        since = self._forward_since_s
        return 0.0 if since is None else now - since

    def _the_backend(self) -> Backend:
        if self._backend is None:  # the engine stopped while it was made
            raise EngineClosed
        return self._backend

    def _check_length(self, request: Request) -> None:
        room = self._limits.interactive if request.interactive else self._limits.budget
        longest = len(request.prefix) + max((len(item) for item in request.items), default=0)
        if longest > room:
            raise ItemTooLong(longest, room)

    def _count_tokens(self, change: int) -> None:
        self._tokens += change
        WAITING_TOKENS.set(self._tokens)

    def _spent(self, one: Pending, stage: str, seconds: float) -> None:
        one.spend(stage, seconds)
        STAGE_SECONDS.labels("engine", stage).observe(seconds)


def _too_late(one: Pending, now: float) -> DeadlinePassed:
    late_ms = max(0, int((now - one.deadline_s) * 1000))
    return DeadlinePassed("its forward", late_ms=late_ms, waited_ms=(now - one.arrived_s) * 1000)
