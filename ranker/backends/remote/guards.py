"""When to ask a remote backend again, and when not at all: a retry budget and a circuit breaker, pure under a clock.

Both belong to whoever calls them from one thread or loop; neither locks. The budget is that of the SRE book, chapter on
overload: retries are a share of requests, so a backend that fails everything gets that much more load, not a multiple.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum


class RetryBudget:
    """Invariant: retries taken <= reserve + share * calls made, and at most `reserve` at once."""

    def __init__(self, share: float, reserve: float) -> None:
        self._share = share
        self._reserve = reserve
        self._left = reserve

    def called(self) -> None:
        """A first attempt earns its share."""
        self._left = min(self._reserve, self._left + self._share)

    def take(self) -> bool:
        """Whether one retry may be made; it is paid for then."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class State(Enum):
    CLOSED = 0  # calls pass
    HALF_OPEN = 1  # one call passes, and decides
    OPEN = 2  # none does


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    window: int = 20  # the calls looked back on
    least: int = 5  # failures among them before it may open
    share: float = 0.5  # of the calls looked back on
    open_s: float = 1.0  # how long it stays open; twice as long after each probe that fails
    longest_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Permit:
    """To make one call; handed back with how it went. Of an earlier state, it no longer counts."""

    generation: int


class Breaker:
    """Opens when at least `least` and at least a `share` of the last calls failed; half-open, one call decides."""

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._outcomes: deque[bool] = deque(maxlen=limits.window)
        self._generation = 0
        self._probing = False
        self._reopens_s = 0.0
        self._open_s = limits.open_s
        self.state = State.CLOSED
        self.reason = ""  # of the last failure; empty while closed after a success

    def admit(self, now_s: float) -> Permit | None:
        """A permit, or None: not now."""
        if self.state is State.OPEN and now_s >= self._reopens_s:
            self._become(State.HALF_OPEN)
        if self.state is State.OPEN or (self.state is State.HALF_OPEN and self._probing):
            return None
        self._probing = self.state is State.HALF_OPEN
        return Permit(self._generation)

    def succeeded(self, permit: Permit) -> None:
        if permit.generation != self._generation:
            return
        self.reason = ""
        if self.state is State.HALF_OPEN:
            self._open_s = self._limits.open_s
            self._become(State.CLOSED)
        else:
            self._outcomes.append(True)

    def failed(self, permit: Permit, now_s: float, reason: str) -> bool:
        """Whether this opened the circuit."""
        if permit.generation != self._generation:
            return False
        self.reason = reason
        if self.state is State.HALF_OPEN:
            self._open_s = min(self._limits.longest_s, 2 * self._open_s)
        else:
            self._outcomes.append(False)
            failures = self._outcomes.count(False)
            if failures < self._limits.least or failures < self._limits.share * len(self._outcomes):
                return False
        self._become(State.OPEN)
        self._reopens_s = now_s + self._open_s
        return True

    def abandoned(self, permit: Permit) -> None:
        """The call says nothing of the backend; a probe is for the next caller to make."""
        if permit.generation == self._generation:
            self._probing = False

    def reopens_in_s(self, now_s: float) -> float:
        """How long it stays open yet, 0 when it is not."""
        return max(0.0, self._reopens_s - now_s) if self.state is State.OPEN else 0.0

    def _become(self, state: State) -> None:
        self.state = state
        self._generation += 1
        self._probing = False
        self._outcomes.clear()
