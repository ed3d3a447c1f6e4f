"""What arrives, and the depth at which it takes the target share of the engine: the feed-forward of depth.py.

Rule: the mean of the rate of arrivals since it last changed, over SLOW_S at most. It has changed when the mean over
FAST_S is further from it than chance would have it: two and a half standard deviations of a Poisson count, both means'
own. Then the fast one is believed and the mean begins anew. So a steady load gives a steady depth, and a burst is
answered within FAST_S or so.

With f tokens a second whatever the depth, c tokens a second for each candidate deep, r the share of the engine that
what can wait needs beyond its own arrivals, and s seconds a token: depth = ((target − r) / s − f) / c.

Units: tokens, seconds, candidates. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math

FAST_S = 0.25
CALM_S = 0.8
SLOW_S = 2.0
_CHANCE = 2.5  # standard deviations
_OF_AGE = 0.5  # of the time since the change: so much the mean looks back


class Arrivals:
    """Rates of one group of works: works, tokens whatever the depth, and tokens for each candidate deep, a second."""

    def __init__(self, now_s: float, times: int = 1) -> None:
        """`times` as long as the constants say the means look back."""
        self._fast_s, self._calm_s, self._slow_s = times * FAST_S, times * CALM_S, times * SLOW_S
        self._now_s = now_s
        self._count = self._fixed = self._item = 0.0  # since the last step
        self._fast = (0.0, 0.0, 0.0)
        self._calm = (0.0, 0.0, 0.0)
        self._slow = (0.0, 0.0, 0.0)
        self._since_s = now_s  # the last change

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
        self._calm = _towards(self._calm, fresh, dt / self._calm_s)
        back_s = min(self._slow_s, max(self._fast_s, _OF_AGE * (now_s - self._since_s)))
        self._slow = _towards(self._slow, fresh, dt / back_s)
        slow = self._slow[0]
        for mean, over_s, sign in ((self._fast, self._fast_s, 1.0), (self._calm, self._calm_s, -1.0)):
            chance = _CHANCE * math.sqrt(max(slow, mean[0]) / 2 * (1 / over_s + 1 / back_s))
            if sign * (mean[0] - slow) > chance:
                self._since_s = now_s
                self._slow = mean

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
