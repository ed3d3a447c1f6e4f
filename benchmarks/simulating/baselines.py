"""What traffic shaping is compared with, behind the same protocol: FIFO, static priority, uniform depth by a PID loop.

All three know the engine's speed as little as the full policy does: `done` teaches them a mean of seconds a token. All
refuse what would let more than `bound_tokens` wait, and drop what has expired before it costs a forward, as
`DeadlineQueue` does.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import replace
from itertools import count

from penstock.ranker.shaping.work import Admission, Admitted, Batch, Part, Refused, State, Wait, Waiting, Why, Work
from penstock.schemas.events import RankClass

LEARN = 0.05  # weight of the newest forward in the mean of seconds a token
GUESS_S = 5e-5  # a token, before the first forward


class Fifo:
    """Whoever came first; everybody at the nominal depth."""

    def __init__(self, nominal: int, bound_tokens: float) -> None:
        self.nominal = nominal
        self.bound_tokens = bound_tokens
        self._queues: tuple[deque[Work], ...] = (deque(),)
        self._gone: set[int] = set()
        self._numbers = count(1)
        self._waiting = 0.0  # tokens, at the nominal depth
        self._of: Counter[RankClass] = Counter()
        self._tokens_of = dict.fromkeys(RankClass, 0.0)
        self._token_s = GUESS_S
        self._admitted: Counter[RankClass] = Counter()
        self._refused: Counter[Why] = Counter()
        self._expired: Counter[RankClass] = Counter()

    def depth(self, work: Work) -> int:
        return min(work.wanted, self.nominal)

    def queue_of(self, work: Work) -> deque[Work]:
        return self._queues[0]

    def held(self, work: Work) -> float:
        """Tokens that count against the bound for this work."""
        return self._waiting

    def offer(self, work: Work, now_s: float) -> Admission:
        tokens = work.tokens(min(work.wanted, self.nominal))
        held = self.held(work)
        over = held + tokens - self.bound_tokens
        if over > 0 and held:
            self._refused[Why.QUEUE] += 1
            return Refused(max(0.05, over * self._token_s), Why.QUEUE)
        self.queue_of(work).append(work)
        self._count(work, 1)
        self._admitted[work.class_] += 1
        return Admitted()

    def batch(self, now_s: float, budget_tokens: float) -> Batch | Wait:
        self.control(now_s)
        parts: list[Part] = []
        expired: list[Work] = []
        tokens = 0.0
        for queue in self._queues:
            while queue:
                work = queue[0]
                if work.number in self._gone:
                    self._gone.discard(work.number)
                elif work.deadline_s <= now_s and work.class_ is not RankClass.ALERT:  # an alert is told late
                    expired.append(work)
                    self._expired[work.class_] += 1
                    self._count(work, -1)
                else:
                    depth = self.depth(work)
                    needed = work.tokens(depth)
                    if parts and tokens + needed > budget_tokens:
                        return Batch(next(self._numbers), tuple(parts), tokens, now_s, tuple(expired))
                    parts.append(Part(work, depth, Why.LOAD))
                    tokens += needed
                    self._count(work, -1)
                queue.popleft()
        if parts or expired:
            return Batch(next(self._numbers), tuple(parts), tokens, now_s, tuple(expired))
        return Wait(float("inf"))

    def control(self, now_s: float) -> None:
        """Nothing: the depth stays."""

    def done(self, batch: Batch, now_s: float, seconds: float) -> None:
        if batch.tokens:
            self._token_s += LEARN * (seconds / batch.tokens - self._token_s)

    def withdraw(self, number: int) -> bool:
        for queue in self._queues:
            for work in queue:
                if work.number == number and number not in self._gone:
                    self._gone.add(number)
                    self._count(work, -1)
                    return True
        return False

    def state(self, now_s: float) -> State:
        oldest: dict[RankClass, float] = {}
        for queue in self._queues:
            for work in queue:
                oldest.setdefault(work.class_, now_s - work.arrived_s)
                if len(oldest) == len(RankClass):
                    break
        queues = {each: Waiting(self._of[each], self._tokens_of[each], oldest.get(each, 0.0)) for each in RankClass}
        return State(
            queues=queues,
            late=Waiting(0, 0.0, 0.0),
            slack_s=0.0,
            delay_s=self.delay_s,
            depth=float(self.nominal),
            depth_reason=Why.LOAD,
            confidence=1.0,
            admitted=dict(self._admitted),
            deferred={},
            refused=dict(self._refused),
            expired=dict(self._expired),
        )

    @property
    def delay_s(self) -> float:
        """Predicted, of an interactive work that comes now."""
        return self._waiting * self._token_s

    def _count(self, work: Work, sign: int) -> None:
        tokens = sign * work.tokens(min(work.wanted, self.nominal))
        self._waiting += tokens
        self._of[work.class_] += sign
        self._tokens_of[work.class_] += tokens


_ORDER = (RankClass.INTERACTIVE, RankClass.RECOMMENDATION, RankClass.ALERT)


class StaticPriority(Fifo):
    """Interactive before recommendations before alerts, each in the order of arrival, and each with a bound of its own:
    else alerts would fill the room of those who go before them."""

    def __init__(self, nominal: int, bound_tokens: float) -> None:
        super().__init__(nominal, bound_tokens)
        self._queues = tuple(deque() for _ in _ORDER)

    def queue_of(self, work: Work) -> deque[Work]:
        return self._queues[_ORDER.index(work.class_)]

    def held(self, work: Work) -> float:
        return self._tokens_of[work.class_]

    @property
    def delay_s(self) -> float:
        first = next((queue[0] for queue in self._queues if queue), None)
        own = first.tokens(min(first.wanted, self.nominal)) if first else 0.0
        return max(0.0, self._waiting - own) * self._token_s


class UniformPid(StaticPriority):
    """Static priority at one depth for all, by a PID loop on the predicted delay: the published system's control. The
    delay is that of all that waits behind the first, so that one who finds the engine free sees none.

    depth = nominal x (1 + P e + I sum e dt + D de/dt), e = (setpoint - delay) / setpoint, between floor and ceiling;
    where it is at a bound the sum stands still.
    """

    def __init__(
        self,
        floor: int,
        nominal: int,
        ceiling: int,
        bound_tokens: float,
        *,
        setpoint_s: float = 0.1,
        gains: tuple[float, float, float] = (0.3, 0.3, 0.02),
        every_s: float = 0.1,
    ) -> None:
        super().__init__(nominal, bound_tokens)
        self._floor, self._ceiling = floor, ceiling
        self._setpoint_s, self._gains, self._every_s = setpoint_s, gains, every_s
        self._depth = float(nominal)
        self._sum = 0.0
        self._last = 0.0
        self._sampled_s = 0.0

    def depth(self, work: Work) -> int:
        return min(work.wanted, max(self._floor, round(self._depth)))

    def control(self, now_s: float) -> None:
        passed = now_s - self._sampled_s
        if passed < self._every_s:
            return
        p, i, d = self._gains
        error = max(-3.0, 1 - self.delay_s / self._setpoint_s)
        step = min(passed, 1.0)
        slope = (error - self._last) / passed
        asked = self.nominal * (1 + p * error + i * (self._sum + error * step) + d * slope)
        self._depth = min(float(self._ceiling), max(float(self._floor), asked))
        if self._depth == asked:
            self._sum += error * step
        self._last, self._sampled_s = error, now_s

    def state(self, now_s: float) -> State:
        return replace(super().state(now_s), depth=self._depth)
