"""What is done once a period: rates of what arrives, the shares of the engine that follow from them, and depth.

Depth counts whoever asks, those too that were turned away for want of time: it is to make room for them. The shares
that what can wait may be promised count only who was let in, so that a crowd at the door takes nothing from those
inside.

Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import math

from penstock.ranker.shaping.cost import CostModel
from penstock.ranker.shaping.demand import Demand
from penstock.ranker.shaping.depth import PERIOD_S, DepthController
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.load import Arrivals, feed_forward
from penstock.ranker.shaping.schedule import ALERT, INTERACTIVE, RECOMMENDATION
from penstock.ranker.shaping.work import Work

_SHARE_STEP = 32.0  # shares follow in steps, since each one costs a recount
_CAUGHT_UP_S = 5.0  # in which what is late is to be served: it takes depth from all
_DENSITY_EVERY = 5  # periods
_OF_LATE = 0.3  # the newest batch's part in the mean


class Regulator:
    def __init__(self, limits: Limits, cost: CostModel, demand: Demand, now_s: float) -> None:
        self.depth = DepthController(limits.depths, limits.delay_s, now_s)
        self.next_s = now_s + PERIOD_S
        self._limits, self._cost, self._demand = limits, cost, demand
        self._people = Arrivals(now_s)
        self._others = Arrivals(now_s, times=4.0)
        self._away = Arrivals(now_s)
        self._periods = 0
        self._backlog = 0.0  # share of the engine that what can wait needs beyond what comes
        self._together = 1.0  # works a batch, of late
        demand.share(INTERACTIVE, 1.0 - limits.alert_share)

    def came(self, work: Work, level: int, now_s: float) -> None:
        """It was let in."""
        group = self._people if level == INTERACTIVE else self._others
        group.came(now_s, work.fixed, work.item * (1.0 - work.hits))

    def turned_away(self, work: Work, now_s: float) -> None:
        self._away.came(now_s, work.fixed, work.item * (1.0 - work.hits))

    def began(self, works: int) -> None:
        """A batch of so many works."""
        self._together += _OF_LATE * (works - self._together)

    def step(self, now_s: float, start_s: float, delay_s: float, late: float) -> None:
        """`start_s`: when the engine is free of what it has begun. `delay_s`: predicted, of an interactive work that
        comes now. `late`: tokens that wait beyond their own deadlines' promise."""
        self.next_s = max(self.next_s + PERIOD_S, now_s + PERIOD_S / 2)
        people, others, away = groups = (self._people, self._others, self._away)
        for group in groups:
            group.step(now_s)
        limits, demand = self._limits, self._demand
        token_s, floor = self._cost.token_s / limits.lanes, limits.depths.floor
        overhead = self._cost.overhead_s / self._cost.token_s / self._together
        for_people = token_s * (people.fixed + people.works * overhead + people.item * floor)
        for_others = token_s * (others.fixed + others.works * overhead + others.item * floor)
        self._periods += 1
        if self._periods % _DENSITY_EVERY == 0:  # dear, and it changes slowly
            self._backlog = max(0.0, demand.density(RECOMMENDATION, start_s) - for_others)
        fixed = people.fixed + others.fixed + away.fixed + (people.works + others.works + away.works) * overhead
        share = limits.use - self._backlog - late * token_s / _CAUGHT_UP_S
        self.depth.step(now_s, delay_s, feed_forward(share, token_s, fixed, people.item + others.item + away.item))
        for level, least in ((RECOMMENDATION, 2 * limits.alert_share), (ALERT, limits.alert_share)):
            free = max(1.0 - limits.alert_share - for_people, least)
            demand.share(level, math.ceil(_SHARE_STEP * free) / _SHARE_STEP)
