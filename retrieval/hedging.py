"""A shard's replicas: whom to ask first, when to ask another as well, and what to remember. No I/O, no torch.

The first asked is the one that answered last. Another is asked at once when it fails, and beside it when it has not
answered within the 95th percentile of recent calls, the first answer counting (Dean and Barroso, The Tail at Scale,
2013). Only so many calls may be hedged: what replicas cannot do in time they should not be asked for twice.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Hashable

KEPT = 256  # recent calls of a method
ENOUGH = 20  # of them, before a quantile means anything
QUANTILE = 0.95
UNKNOWN_S = 0.1  # until then
HEDGE_SHARE = 0.1  # of calls that may be hedged
HEDGES_SAVED = 5.0  # at most


class Replicas:
    """What is known of one shard's replicas, numbered from 0. Safe to share between threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._lock = threading.Lock()
        self._first = 0
        self._hedges = HEDGES_SAVED  # that may be sent now
        self._seconds: dict[Hashable, deque[float]] = {}

    def race(self, method: Hashable, *, may_hedge: bool = True) -> Race:
        """A new call. `method`: what it is compared with. `may_hedge`: False where another could not answer."""
        with self._lock:
            self._hedges = min(HEDGES_SAVED, self._hedges + HEDGE_SHARE)
            order = [(self._first + step) % self.count for step in range(self.count)]
            after = self._patience(method) if may_hedge and self.count > 1 else math.inf
        return Race(self, method, order, after, may_hedge)

    def _patience(self, method: Hashable) -> float:
        """Seconds: the quantile, the nearest rank above it."""
        recent = sorted(self._seconds.get(method, ()))
        return recent[math.ceil(QUANTILE * len(recent)) - 1] if len(recent) >= ENOUGH else UNKNOWN_S

    def _spend(self) -> bool:
        """Whether one more call may be hedged now; if so it counts."""
        with self._lock:
            allowed = self._hedges >= 1
            self._hedges -= allowed
            return allowed

    def _answered(self, method: Hashable, replica: int, seconds: float | None) -> None:
        with self._lock:
            self._first = replica
            if seconds is not None:
                self._seconds.setdefault(method, deque(maxlen=KEPT)).append(seconds)


class Race:
    """One call of one shard. Whoever makes it asks `ask` for replicas and tells how each fared; times are monotonic
    seconds. Not safe for threads."""

    def __init__(self, replicas: Replicas, method: Hashable, order: list[int], after: float, timed: bool) -> None:
        self._replicas = replicas
        self._method = method
        self._left = order  # not asked yet
        self._asked: dict[int, float] = {}  # under way, since when
        self._after = after  # seconds; inf: no hedging
        self._timed = timed
        self.hedge: int | None = None  # who was asked beside another

    def ask(self, now: float) -> int:
        """The replica to ask now: at the start, and when `failed` says so."""
        replica = self._left.pop(0)
        self._asked[replica] = now
        return replica

    def failed(self, replica: int) -> bool:
        """It answered with an error that another might not. Whether to `ask` another: none is left under way."""
        del self._asked[replica]
        return bool(self._left) and not self._asked

    def in_vain(self, replica: int) -> bool:
        """It answered that it had waited for a version in vain. Whether another may still answer better: then it is out
        of the race, else its answer is the one that counts."""
        if len(self._asked) == 1:
            return False
        del self._asked[replica]
        return True

    def under_way(self) -> bool:
        """Whether somebody may still answer."""
        return bool(self._asked)

    def hedge_at(self) -> float:
        """When another should be asked beside the one under way; inf: never."""
        if not self._left or len(self._asked) != 1:
            return math.inf
        return next(iter(self._asked.values())) + self._after

    def ask_beside(self, now: float) -> int | None:
        """The replica to ask beside the one under way, at `hedge_at`; None: too many calls were hedged already."""
        if not self._replicas._spend():
            self._after = math.inf
            return None
        self.hedge = self.ask(now)
        return self.hedge

    def answered(self, replica: int, now: float) -> None:
        """It gave the answer that counts."""
        self._replicas._answered(self._method, replica, now - self._asked[replica] if self._timed else None)
