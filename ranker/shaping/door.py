"""Who is let in, and what is promised to whom.

A work must fit its queue's bound, be feasible beside all that was promised (demand.py), its tenant be within its fair
share where the queue is crowded, and people's queue not be standing (admission.py). What fails is refused with a
retry-after when a person waits for it, or deferred: promised a later time, for which a small share of the engine is
kept. Promises are made for the floor depth, by cautious prediction.

Bound: a person's refused work, offered again after `retry_after_s` with as much time as it had, is let in when nothing
else came, if it would fit an idle engine.

Owner: one shaper, which takes in what is let in; nothing is kept here.
"""

from __future__ import annotations

import math

from penstock.ranker.shaping.admission import FairShares, StandingQueue
from penstock.ranker.shaping.cost import CostModel
from penstock.ranker.shaping.demand import WHOLE, Demand
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.picker import Picker
from penstock.ranker.shaping.schedule import INTERACTIVE, LATE, Entry
from penstock.ranker.shaping.work import Refused, Why, Work

_SHARED = 0.2  # of the time to a deadline, at most, for those that share the batch
_ALONE = 0.999  # a share from which on a tenant has nobody to be ahead of


class Door:
    def __init__(self, limits: Limits, cost: CostModel, demand: Demand, picker: Picker, shares: FairShares) -> None:
        self.standing = StandingQueue(limits.standing_s, limits.interval_s)
        self._limits = limits
        self._bounds_s = (limits.interactive_s, limits.recommendation_s, limits.alert_s, limits.late_s)  # by level
        self._cost, self._demand, self._picker, self._shares = cost, demand, picker, shares

    def answer(self, work: Work, level: int, start_s: float, now_s: float) -> tuple[Entry, Why] | Refused:
        """The entry to take in and why it is of its level: of another than `level` where it is deferred.

        `start_s`: when the engine is free of what it has begun.
        """
        demand, limits, lane = self._demand, self._limits, self._picker.lanes[level]
        token_s, bound_s = demand.token_s, self._bounds_s[level]
        cost = float(max(1, math.ceil(work.tokens(work.least) + self._cost.overhead_s / self._cost.token_s)))
        left_s = work.deadline_s - now_s
        idle = level == INTERACTIVE and not demand.totals[WHOLE] and start_s <= now_s and left_s > 0
        if (lane.cost + cost) * token_s > bound_s and not idle:
            return Refused(self._drained(level, cost, start_s) - now_s, Why.QUEUE)
        # What ends last on one of several lanes began when the others were still full.
        # And others that it shares a batch with end when it does.
        together_s = min(limits.batch_s, _SHARED * left_s) if left_s > 0 else 0.0
        due_s = work.deadline_s - cost * token_s * (limits.lanes - 1) - together_s
        slot = demand.slot(due_s, now_s)
        # What alerts are behind their share is served in between, whoever is due.
        after_s = start_s + self._picker.owed * token_s
        waits_s = after_s - now_s + lane.cost * token_s
        crowded = waits_s > limits.crowded * min((due_s - now_s) * demand.shares[level + 1], bound_s)
        ahead = limits.burst_s * self._shares.share(work.tenant) / token_s
        why = Why.FITS
        if not demand.fits(level, slot, cost, after_s):
            why = Why.LATE
        elif crowded and self._shares.share(work.tenant) < _ALONE and self._shares.ahead(work.tenant) > ahead:
            why = Why.TENANT
        elif level == INTERACTIVE and self.standing.refuses(waits_s, now_s):
            why = Why.STANDING
        if why is Why.FITS:
            self._shares.charge(work.tenant, cost, math.inf if crowded else ahead)
            return Entry(work, level, work.deadline_s, due_s, slot, cost), why
        if why is Why.LATE and idle:  # what is believed of the engine may be wrong, and this one tells
            return Entry(work, level, work.deadline_s, due_s, slot, cost), why
        if level == INTERACTIVE:
            return Refused(self._clear(slot, cost, after_s, now_s) - now_s, why)
        if (self._picker.lanes[LATE].cost + cost) * token_s > self._bounds_s[LATE]:
            return Refused(self._drained(LATE, cost, after_s) - now_s, why)
        return self.promise(work, cost, after_s, now_s), why  # paid for by the late ones' share, not by the tenant's

    def promise(self, work: Work, cost: float, start_s: float, now_s: float) -> Entry:
        """With a time by which it is served for certain, however late."""
        demand = self._demand
        after_s = max(demand.after_all(LATE, cost, start_s), work.deadline_s)
        due_s = after_s + (after_s - now_s) / 32 + 0.01  # rounding down to a slot takes less than that
        return Entry(work, LATE, due_s, due_s, demand.slot(due_s, now_s), cost)

    def _drained(self, level: int, cost: float, start_s: float) -> float:
        """When a level has room for so many tokens, whatever of the others is served before."""
        demand, lane = self._demand, self._picker.lanes[level]
        over = lane.cost + cost - self._bounds_s[level] / demand.token_s
        others = demand.totals[WHOLE] - lane.cost
        return start_s + min(others + over + self._picker.dearest, demand.totals[WHOLE]) * demand.token_s

    def _clear(self, slot: float, cost: float, start_s: float, now_s: float) -> float:
        """When a work that keeps its distance to its deadline finds nothing in its way."""
        demand = self._demand
        begun_s = max(self._limits.batch_s, self._picker.dearest * demand.token_s)  # which is not interrupted
        if slot - now_s < cost * demand.token_s + begun_s:
            return start_s + demand.totals[WHOLE] * demand.token_s / demand.shares[1]
        return demand.clear_s(slot, cost, start_s, now_s)
