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
        self._finish: dict[str, float] = {}  # F of the active: those that are ahead of V
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
        heapq.heappush(self._ends, (finish, tenant))
        if len(self._ends) > 4 * len(self._finish) + 64:
            self._ends = [(end, name) for name, end in self._finish.items()]
            heapq.heapify(self._ends)

    def refund(self, tenant: str, cost: float) -> None:
        """A work was withdrawn before it was served."""
        before = self._finish.get(tenant)
        if before is not None:
            self._finish[tenant] = max(self._time, before - cost / self.weight(tenant))
            heapq.heappush(self._ends, (self._finish[tenant], tenant))

    def served(self, cost: float) -> None:
        """So many tokens were served, whoever's: V rises, tenants that it reaches are no longer active."""
        ends, finish = self._ends, self._finish
        while ends:
            end, tenant = ends[0]
            if finish.get(tenant) != end:
                heapq.heappop(ends)
                continue
            step = (end - self._time) * self._active
            if step > cost:
                self._time += cost / self._active
                return
            cost -= max(step, 0.0)
            self._time = max(self._time, end)
            heapq.heappop(ends)
            del finish[tenant]
            self._active -= self.weight(tenant)
        self._active = 0.0

    def forgive(self) -> None:
        """Nothing waits: everyone begins anew."""
        self._finish.clear()
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
