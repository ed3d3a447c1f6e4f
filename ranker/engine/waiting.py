"""What the engine has taken in and not answered yet, bounded by its tokens.

Invariant: what `take` let in leaves by `end`, once, with an answer or an error, and its outcome is counted. Whoever
changes what the forward thread may wait for holds `changed` and notifies it; its lock may be taken again by its holder.
"""

from __future__ import annotations

import threading

from prometheus_client import Counter, Gauge

from penstock.ranker.engine.errors import EngineFull
from penstock.ranker.engine.turns import Answer, Pending
from penstock.ranker.errors import CallerLeft, DeadlinePassed

REQUESTS = Counter("penstock_engine_requests_total", "Scoring requests by how they ended", ["outcome"])
WAITING_TOKENS = Gauge("penstock_engine_waiting_tokens", "Tokens of requests taken in and not answered")


class Waiting:
    """Safe to share between threads."""

    def __init__(self, limit: int) -> None:
        self.changed = threading.Condition()
        self.tokens = 0
        self._limit = limit
        self._held: dict[int, Pending] = {}  # by number
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._held)

    def take(self, one: Pending, now: float) -> None:
        """Raises EngineFull: where even without what came too late there is no room."""
        with self.changed:
            if self.tokens + one.cost > self._limit:
                self.drop(now)  # the forward thread may be long in coming to it
            if self.tokens + one.cost > self._limit:
                REQUESTS.labels("refused").inc()
                raise EngineFull(self.tokens, one.cost, self._limit)
            one.number = self._arrivals
            self._arrivals += 1
            self._held[one.number] = one
            self._count(one.cost)
            self.changed.notify_all()

    def ready(self) -> list[Pending]:
        """Those that have items in no forward yet."""
        with self.changed:
            return [one for one in self._held.values() if one.remaining]

    def drop(self, now: float) -> None:
        """Answer whoever came too late or left."""
        with self.changed:
            for one in list(self._held.values()):
                try:
                    gone = one.gone
                except BaseException as error:  # the caller's own function
                    self.end(one, "left", CallerLeft(f"whether the caller left: {type(error).__name__}: {error}"))
                    continue
                if gone:
                    self.end(one, "left", CallerLeft("the caller left before its forward"))
                elif one.deadline_s <= now:
                    self.end(one, "expired", too_late(one, now))

    def end(self, one: Pending, outcome: str, end: Answer | Exception) -> None:
        """Answer a request, unless it was answered before."""
        with self.changed:
            if self._held.pop(one.number, None) is None:
                return
            self._count(-one.cost)
            REQUESTS.labels(outcome).inc()
            if isinstance(end, Answer):
                one.future.set_result(end)
            else:
                one.future.set_exception(end)

    def end_all(self, outcome: str, error: Exception) -> None:
        with self.changed:
            for one in list(self._held.values()):
                self.end(one, outcome, error)

    def next_deadline_s(self) -> float | None:
        """None when nothing waits."""
        with self.changed:
            return min((one.deadline_s for one in self._held.values()), default=None)

    def _count(self, change: int) -> None:
        self.tokens += change
        WAITING_TOKENS.set(self.tokens)


def too_late(one: Pending, now: float) -> DeadlinePassed:
    late_ms = max(0, int((now - one.deadline_s) * 1000))
    return DeadlinePassed("its forward", late_ms=late_ms, waited_ms=(now - one.arrived_s) * 1000)
