"""What arrives, and the depth at which it takes the target share of the engine: the feed-forward of depth.py.

Rule: two exponential means of the rate of arrivals, a fast one and a slow one. The slow one counts, until the fast one
is further from it than chance would have it (three standard deviations of a Poisson count): then the load has changed,
and for a second the fast one counts. So a steady load gives a steady depth, and a burst is answered within FAST_S.

With f tokens a second whatever the depth, c tokens a second for each candidate deep, r the share of the engine that
what can wait needs beyond its own arrivals, and s seconds a token: depth = ((target − r) / s − f) / c.

Units: tokens, seconds, candidates. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math

FAST_S = 0.25
SLOW_S = 4.0
_CHANCE = 3.0  # standard deviations
_FOLLOWS_S = 1.0


class Arrivals:
    """Rates of one group of works: works, tokens whatever the depth, and tokens for each candidate deep, a second."""

    def __init__(self, now_s: float, fast_s: float = FAST_S, slow_s: float = SLOW_S) -> None:
        self._fast_s, self._slow_s = fast_s, slow_s
        self._now_s = now_s
        self._count = self._fixed = self._item = 0.0  # since the last step
        self._fast = (0.0, 0.0, 0.0)
        self._slow = (0.0, 0.0, 0.0)
        self._follow_until_s = -math.inf
        self._began_s = now_s

    def came(self, fixed: float, item: float) -> None:
        self._count += 1
        self._fixed += fixed
        self._item += item

    def step(self, now_s: float) -> None:
        dt = now_s - self._now_s
        if dt <= 0:
            return
        fresh = (self._count / dt, self._fixed / dt, self._item / dt)
        self._count = self._fixed = self._item = 0.0
        self._now_s = now_s
        self._fast = _towards(self._fast, fresh, dt / self._fast_s)
        age = now_s - self._began_s  # a young mean is the plain one of all that came
        self._slow = _towards(self._slow, fresh, dt / min(self._slow_s, max(age, dt)))
        fast, slow = self._fast[0], self._slow[0]
        chance = _CHANCE * math.sqrt(max(slow, fast) / (2 * self._fast_s))
        if abs(fast - slow) > chance:
            self._follow_until_s = now_s + _FOLLOWS_S
        if now_s < self._follow_until_s:
            self._slow = self._fast

    @property
    def works(self) -> float:
        return self._slow[0]

    @property
    def fixed(self) -> float:
        return self._slow[1]

    @property
    def item(self) -> float:
        return self._slow[2]


def _towards(mean: tuple[float, float, float], fresh: tuple[float, float, float], by: float) -> tuple[float, ...]:
    part = 1.0 - math.exp(-by)
    return tuple(old + part * (new - old) for old, new in zip(mean, fresh, strict=True))


def feed_forward(share: float, token_s: float, fixed: float, item: float) -> float:
    """Candidates; infinity where nothing arrives whose depth matters, 0 where there is not even room for prefixes.

    `share` of the engine may be taken; `fixed` and `item` are rates as in Arrivals.
    """
    room = share / token_s - fixed
    if room <= 0:
        return 0.0
    return room / item if item > 0 else math.inf
