"""Who is let in beyond the question of time: fair shares of tenants, and no standing queue of people.

`FairShares`: a token bucket a tenant, in cost, that fills at the tenant's share of what is served at the moment. Rule:
virtual time as in start-time fair queueing (Goyal, Vin and Cheng 1996) and the counters of VTC (Sheng et al. 2024,
arXiv 2401.00588): V rises by tokens served over the weights of the tenants that are active, a tenant's finish F by its
tokens over its weight; a tenant that comes back starts at V, so nobody saves up and nobody is punished for what was
free. F − V is how far a tenant is ahead of its share. Bound: two tenants that both always ask are served, per weight,
alike but for the bucket and one work each.

`StandingQueue`: CoDel (Nichols and Jacobson 2012; RFC 8289) with its drop moved to the door: the sojourn times of
works that leave say when a work should be dropped, and the next one that comes is refused in its place, since what was
let in is never dropped. Bound: as CoDel's, one refusal an interval, then faster by the square root of their number,
until a work leaves within the target.

Units: cost in tokens, times in seconds. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping


class FairShares:
    def __init__(self, weights: Mapping[str, float]) -> None:
        """Tenants that are not named weigh 1."""
        for tenant, weight in weights.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise ValueError(f"weight of tenant {tenant!r} is {weight}: expected a finite number above 0")
        self._weights = dict(weights)
        self._time = 0.0  # V, tokens per weight
        self._finish: dict[str, float] = {}  # F of the active: those that are ahead of V, or have works waiting
        self._waiting: dict[str, int] = {}  # works
        self._ends: list[tuple[float, str]] = []  # heap; an entry counts where it is the tenant's finish
        self._active = 0.0  # their weights

    def weight(self, tenant: str) -> float:
        return self._weights.get(tenant, 1.0)

    def share(self, tenant: str) -> float:
        """Of the engine, were it to come now."""
        weight = self.weight(tenant)
        others = self._active - (weight if tenant in self._finish else 0.0)
        return weight / (max(others, 0.0) + weight)

    def ahead(self, tenant: str) -> float:
        """Tokens that the tenant was let in beyond its share of what was served since."""
        return max(0.0, self._finish.get(tenant, self._time) - self._time) * self.weight(tenant)

    def charge(self, tenant: str, cost: float, most_ahead: float = math.inf) -> None:
        """A work was let in. `most_ahead`: what was free is not held against the tenant beyond these tokens."""
        weight = self.weight(tenant)
        before = self._finish.get(tenant)
        if before is None:
            self._active += weight
            before = self._time
        finish = before + cost / weight
        finish = max(min(finish, self._time + most_ahead / weight), before)
        self._finish[tenant] = finish
        self._waiting[tenant] = self._waiting.get(tenant, 0) + 1
        heapq.heappush(self._ends, (finish, tenant))
        if len(self._ends) > 4 * len(self._finish) + 64:
            self._ends = [(end, name) for name, end in self._finish.items()]
            heapq.heapify(self._ends)

    def withdrawn(self, tenant: str, cost: float) -> None:
        """A work that was charged left before it was served."""
        if tenant in self._finish:
            self._finish[tenant] = max(self._time, self._finish[tenant] - cost / self.weight(tenant))
            heapq.heappush(self._ends, (self._finish[tenant], tenant))
        self._left(tenant)

    def served(self, tenant: str, cost: float) -> None:
        """A work that was charged is served: V rises, and who has nothing waiting and is not ahead is active no
        more.
        """
        ends, finish = self._ends, self._finish
        while ends and self._active:
            end, other = ends[0]
            if finish.get(other) != end or self._waiting.get(other):
                heapq.heappop(ends)  # out of date, or looked at again when its last work leaves
                continue
            step = (end - self._time) * self._active
            if step > cost:
                break
            cost -= max(step, 0.0)
            self._time = max(self._time, end)
            heapq.heappop(ends)
            self._retire(other)
        if self._active:
            self._time += cost / self._active
        self._left(tenant)

    def _left(self, tenant: str) -> None:
        waiting = self._waiting.get(tenant, 0) - 1
        if waiting > 0:
            self._waiting[tenant] = waiting
            return
        self._waiting.pop(tenant, None)
        end = self._finish.get(tenant)
        if end is None:
            return
        if end <= self._time:
            self._retire(tenant)
        else:
            heapq.heappush(self._ends, (end, tenant))

    def _retire(self, tenant: str) -> None:
        del self._finish[tenant]
        self._active = self._active - self.weight(tenant) if self._finish else 0.0

    def forgive(self) -> None:
        """Nothing waits: everyone begins anew."""
        self._finish.clear()
        self._waiting.clear()
        self._ends.clear()
        self._active = 0.0


class StandingQueue:
    """When to refuse a work for the sake of those that wait."""

    def __init__(self, target_s: float, interval_s: float) -> None:
        if not 0 < target_s < interval_s:
            raise ValueError(
                f"target of {target_s} s and interval of {interval_s} s: expected 0 < target < interval; RFC 8289 has "
                "the target a tenth of the interval or so"
            )
        self.target_s = target_s
        self.interval_s = interval_s
        self._above_s = math.inf  # when the sojourn will have been above the target for an interval
        self._refusing = False
        self._next_s = math.inf
        self._count = 0
        self._count_before = 0  # when refusing last began

    def left(self, sojourn_s: float, now_s: float, waiting: int) -> None:
        """A work began after so long; so many wait behind it."""
        if sojourn_s < self.target_s or not waiting:
            self._above_s = math.inf
            self._refusing = False
        elif self._above_s == math.inf:
            self._above_s = now_s + self.interval_s
        elif now_s >= self._above_s and not self._refusing:
            self._refusing = True
            since = self._count - self._count_before
            recent = now_s - self._next_s < 16 * self.interval_s
            self._count = since if since > 1 and recent else 1
            self._count_before = self._count
            self._next_s = now_s

    def refuses(self, delay_s: float, now_s: float) -> bool:
        """Whether the work that comes now, to wait for so long, is the one to refuse."""
        if not self._refusing or now_s < self._next_s or delay_s <= self.target_s:
            return False
        self._count += 1
        self._next_s = max(self._next_s, now_s - self.interval_s) + self.interval_s / math.sqrt(self._count)
        return True
