"""The shaper that serves: admission, order, depth and spending put together.

An offer: identical to one that waits, it joins it. Else it must fit its queue's bound, be feasible beside all that was
promised (demand.py), its tenant within its fair share where the queue is crowded, and people's queue not standing
(admission.py). What fails is refused with a retry-after when a person waits for it, or deferred: promised a later
time, for which a small share of the engine is kept. Promises are made for the floor depth.

A batch: the next works (picker.py) until it is as large as the engine takes or as long as people should wait behind;
then tokens above the floors (spend.py): as many as uniform depth would spend, never so many that a promise breaks.

Bounds. While services take no longer than the cost model says: every admitted or deferred work is served by what it
was promised, an admitted one by its deadline; a refused one, offered again after `retry_after_s` with as much time as
it had, is let in when nothing else came, if it would fit an idle engine. For that the engine serves by deadline alone,
at the floor, until then. What waits of a level never costs more than the level's bound. When services take longer than
predicted: an interactive work that can no longer be in time is given up as expired, so that the next one can; what is
deferrable is promised anew and never given up.

Owner: one caller, or one lock. Pure under the times passed in; it keeps no clock and no thread.
"""

from __future__ import annotations

import math
from collections import Counter

from penstock.ranker.shaping.admission import FairShares, StandingQueue
from penstock.ranker.shaping.cost import CostModel, Prior
from penstock.ranker.shaping.demand import WHOLE, Demand
from penstock.ranker.shaping.depth import PERIOD_S, DepthBounds, DepthController
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.load import Arrivals, feed_forward
from penstock.ranker.shaping.picker import Picker
from penstock.ranker.shaping.schedule import Entry
from penstock.ranker.shaping.spend import Claim, Purse
from penstock.ranker.shaping.work import (
    Admission,
    Admitted,
    Batch,
    Deferred,
    Part,
    Refused,
    State,
    Wait,
    Waiting,
    Why,
    Work,
)
from penstock.schemas.events import RankClass

INTERACTIVE, RECOMMENDATION, ALERT, LATE = range(4)  # levels: who gives way to whom
LEVELS = {
    RankClass.INTERACTIVE: INTERACTIVE,
    RankClass.RECOMMENDATION: RECOMMENDATION,
    RankClass.ALERT: ALERT,
}
_FOLLOWERS = 256  # identical works that one may carry
_PACE_UP, _PACE_DOWN = 1.01, 0.97  # the demand's pace follows the cost model's in steps, since each one costs a recount
_SHARE_STEP = 32.0  # likewise the shares
_OF_SPARE = 0.25  # of the time that the engine could rest, one batch may go deeper for
_OF_LATE = 0.3  # the newest batch's part in the mean
_SHARED = 0.2  # of the time to a deadline, at most, for those that share the batch
_LONE = 0.5  # likewise, that one may go deeper for when nobody waits behind it
_DENSITY_EVERY = 5  # periods
_TINY = 1e-9
_ADMITTED = Admitted()


class TrafficShaper:
    def __init__(self, limits: Limits, prior: Prior, now_s: float = 0.0) -> None:
        self.limits = limits
        self._lanes = limits.lanes
        self._crowded = limits.crowded
        self._bounds_s = (limits.interactive_s, limits.recommendation_s, limits.alert_s, limits.late_s)  # by level
        self.cost = CostModel(prior, limits.usual_tokens)
        self._demand = Demand(len(LEVELS) + 1, self._pace())
        self._demand.share(INTERACTIVE, 1.0 - limits.alert_share)
        self._demand.share(LATE, limits.late_share)
        self._picker = Picker(self._demand, limits.alert_share)
        self._shares = FairShares(limits.weights)
        self._standing = StandingQueue(limits.standing_s, limits.interval_s)
        self._depth = DepthController(limits.depths, limits.delay_s, now_s)
        self._people = Arrivals(now_s)
        self._others = Arrivals(now_s, times=4.0)
        self._purse = Purse()
        self._entries: dict[int, Entry] = {}  # by the number of its work
        self._followers: dict[int, Entry] = {}  # likewise, whom it follows
        self._leaders: dict[str, Entry] = {}  # by key
        self._under_way: dict[int, float] = {}  # batches: when each should end
        self._periods = 0
        self._backlog = 0.0  # share of the engine that what can wait needs beyond what comes
        self._batches = 0
        self._together = 1.0  # works a batch, of late
        self._owed_until_s = -math.inf  # until then somebody was told to come back
        self._next_step_s = now_s + PERIOD_S
        self._tally: dict[str, Counter[RankClass]] = {name: Counter() for name in ("admitted", "deferred", "expired")}
        self._refused: Counter[Why] = Counter()

    # --- in ----------------------------------------------------------------------------------------------------------

    def offer(self, work: Work, now_s: float) -> Admission:
        if now_s >= self._next_step_s:
            self._step(now_s)
        level = LEVELS[work.class_]
        if work.key is not None and self._joins(work):
            self._tally["admitted"][work.class_] += 1
            return Admitted(Why.SHARED)
        admission = self._decide(work, level, now_s)
        if isinstance(admission, Refused):
            self._refused[admission.reason] += 1
            self._owed_until_s = max(self._owed_until_s, now_s + admission.retry_after_s)
            return admission
        each = work.item * (1.0 - work.hits)
        (self._people if level == INTERACTIVE else self._others).came(now_s, work.fixed, each)
        self._tally["deferred" if isinstance(admission, Deferred) else "admitted"][work.class_] += 1
        return admission

    def withdraw(self, number: int) -> bool:
        if (leader := self._followers.pop(number, None)) is not None:
            leader.followers = tuple(work for work in leader.followers if work.number != number)
            return True
        entry = self._entries.pop(number, None)
        if entry is None:
            return False
        if entry.followers:  # one of them stands in its place: none is due before it
            entry.work, *rest = entry.followers
            entry.followers = tuple(rest)
            del self._followers[entry.work.number]
            self._entries[entry.work.number] = entry
            return True
        self._leave(entry)
        self._picker.lanes[entry.level].drop(entry)
        if entry.level != LATE:
            self._shares.withdrawn(entry.work.tenant, entry.cost)
        return True

    def _decide(self, work: Work, level: int, now_s: float) -> Admission:
        demand, lane = self._demand, self._picker.lanes[level]
        token_s = demand.token_s
        cost = float(math.ceil(work.tokens(work.least) + self._overhead_tokens()))
        start_s = self._start(now_s)
        # What ends last on one of several lanes began when the others were still full.
        # And others that it shares a batch with end when it does.
        due_s = work.deadline_s - cost * token_s * (self._lanes - 1)
        due_s -= max(0.0, min(self.limits.batch_s, _SHARED * (work.deadline_s - now_s)))
        slot = demand.slot(due_s, now_s)
        if (lane.cost + cost) * token_s > self._bounds_s[level]:
            return Refused(self._drained(level, cost, start_s) - now_s, Why.QUEUE)
        # What alerts are behind their share is served in between, whoever is due.
        after_s = start_s + self._picker.owed * token_s
        fits = demand.fits(level, slot, cost, after_s)
        waits_s = after_s - now_s + lane.cost * token_s
        room_s = min((due_s - now_s) * demand.shares[level + 1], self._bounds_s[level])
        crowded = waits_s > self._crowded * room_s
        shares, tenant = self._shares, work.tenant
        ahead = self.limits.burst_s * shares.share(tenant) / token_s
        greedy = crowded and shares.ahead(tenant) > ahead
        why = Why.LATE if not fits else Why.TENANT if greedy else None
        if level == INTERACTIVE:
            if why is None and self._standing.refuses(waits_s, now_s):
                why = Why.STANDING
            if why is not None:
                return Refused(self._clear(slot, cost, after_s, now_s) - now_s, why)
        elif why is not None:
            return self._defer(work, cost, why, after_s, now_s)
        self._take_in(Entry(work, level, work.deadline_s, due_s, slot, cost))
        shares.charge(tenant, cost, math.inf if crowded else ahead)
        return _ADMITTED

    def _defer(self, work: Work, cost: float, why: Why, start_s: float, now_s: float) -> Admission:
        if (self._picker.lanes[LATE].cost + cost) * self._demand.token_s > self._bounds_s[LATE]:
            return Refused(self._drained(LATE, cost, start_s) - now_s, why)
        entry = self._promise(work, cost, start_s, now_s)  # paid for by the late ones' share, not by the tenant's
        return Deferred(entry.due_s - cost * self._demand.token_s, why)

    def _promise(self, work: Work, cost: float, start_s: float, now_s: float) -> Entry:
        """A time by which it is served for certain, however late."""
        demand = self._demand
        after_s = max(demand.after_all(LATE, cost, start_s), work.deadline_s)
        due_s = after_s + (after_s - now_s) / 32 + 0.01  # rounding down to a slot takes less than that
        entry = Entry(work, LATE, due_s, due_s, demand.slot(due_s, now_s), cost)
        self._take_in(entry)
        return entry

    def _take_in(self, entry: Entry) -> None:
        work = entry.work
        self._entries[work.number] = entry
        if work.key is not None:
            self._leaders[work.key] = entry
        self._demand.add(entry.level, entry.slot, entry.cost)
        self._picker.push(entry, self._shares.weight(work.tenant))

    def _joins(self, work: Work) -> bool:
        leader = self._leaders.get(work.key or "")
        if leader is None or leader.promised_s > work.deadline_s or len(leader.followers) >= _FOLLOWERS:
            return False
        leader.followers += (work,)
        self._followers[work.number] = leader
        return True

    # --- out ---------------------------------------------------------------------------------------------------------

    def batch(self, now_s: float, budget_tokens: float) -> Batch | Wait:
        if now_s >= self._next_step_s:
            self._step(now_s)
        if not self._entries:
            self._shares.forgive()
            self._picker.dearest = 0.0
            return Wait(math.inf)
        picker, cost = self._picker, self.cost
        owed = now_s < self._owed_until_s
        depth = 0.0 if owed else self._depth.depth
        room = min(budget_tokens, max(0.0, self.limits.batch_s - cost.overhead_s) / cost.token_s)
        claims: list[Claim] = []
        taken: list[Entry] = []
        expired: list[Work] = []
        planned = least = 0.0
        due_s = math.inf
        picker.begin(self._start(now_s), by_deadline=owed)
        while len(taken) < self.limits.together and (entry := picker.next()) is not None:
            work = entry.work
            floor = work.tokens(work.least)
            end_s = now_s + cost.predict(least + floor)
            if not taken and end_s > entry.promised_s + _TINY and self._give_up(entry, now_s, expired):
                continue
            most = min(max(self.limits.depths.ceiling, work.least), work.wanted)
            aim = work.tokens(min(max(work.least, round(depth)), most))
            if taken and (planned + aim > room or end_s > min(due_s, entry.promised_s)):
                break
            picker.take(entry)
            taken.append(entry)
            claims.append(Claim(work, work.least, work.least if owed or entry.level == LATE else most))
            planned += aim
            least += floor
            due_s = min(due_s, entry.promised_s)
        if not taken:
            return Batch(self._number(), (), 0.0, now_s, tuple(expired)) if expired else Wait(math.inf)
        if len(taken) == 1 and not (picker.lanes[INTERACTIVE].works or picker.lanes[RECOMMENDATION].works):
            room = min(budget_tokens, max(room, _LONE * (due_s - now_s) / cost.token_s))
        return self._filled(taken, claims, tuple(expired), planned, least, room, due_s, now_s)

    def done(self, batch: Batch, now_s: float, seconds: float) -> None:
        if self._under_way.pop(batch.number, None) is None:
            return
        self.cost.observed(batch.tokens, seconds)
        pace, counted = self._pace(), self._demand.token_s
        if not counted * _PACE_DOWN <= pace <= counted:
            self._demand.pace(pace * _PACE_UP)
        if now_s >= self._next_step_s:
            self._step(now_s)

    def _filled(
        self,
        taken: list[Entry],
        claims: list[Claim],
        expired: tuple[Work, ...],
        planned: float,
        least: float,
        room: float,
        due_s: float,
        now_s: float,
    ) -> Batch:
        """The batch of these works, with what is spent above their floors."""
        cost, token_s = self.cost, self.cost.token_s * (1.0 + self.cost.spread)
        spare_s = self._picker.spare(max(0.0, planned - least) * token_s / self.limits.lanes / _OF_SPARE)
        by_slack = least + max(0.0, _OF_SPARE * spare_s) * self.limits.lanes / token_s
        by_due = (due_s - now_s - cost.overhead_s) / token_s
        most = max(min(room, by_slack, by_due), least)
        depths = self._purse.spend(claims, planned, most, self._depth.depth)
        bound = Why.BUDGET if room <= min(by_slack, by_due) else Why.SLACK
        parts: list[Part] = []
        tokens = 0.0
        for entry, claim, depth in zip(taken, claims, depths, strict=True):
            work = entry.work
            tokens += work.tokens(depth)
            parts.append(Part(work, depth, _why(claim, depth, bound if planned > most else Why.MARGIN)))
            parts += [Part(one, min(depth, one.wanted), Why.SHARED) for one in entry.followers]
            self._leave(entry)
            del self._entries[work.number]
            for one in entry.followers:
                del self._followers[one.number]
            if entry.level != LATE:
                self._shares.served(work.tenant, entry.cost)
            if entry.level == INTERACTIVE:
                waiting = self._picker.lanes[INTERACTIVE].works
                self._standing.left(now_s - work.arrived_s, now_s, waiting)
        self._together += _OF_LATE * (len(taken) - self._together)
        number = self._number()
        self._under_way[number] = now_s + cost.overhead_s + tokens * token_s
        return Batch(number, tuple(parts), tokens, now_s, expired)

    def _give_up(self, entry: Entry, now_s: float, expired: list[Work]) -> bool:
        """A work that cannot be in time even alone: whether it went elsewhere."""
        if entry.level == LATE:
            return False  # late as it is, it is served
        self._picker.lanes[entry.level].drop(entry)
        self._leave(entry)
        self._shares.withdrawn(entry.work.tenant, entry.cost)
        del self._entries[entry.work.number]
        followers, entry.followers = entry.followers, ()
        for one in followers:
            del self._followers[one.number]
        if entry.level != INTERACTIVE:
            self._promise(entry.work, entry.cost, self._start(now_s), now_s)
        else:
            expired.append(entry.work)
            self._tally["expired"][entry.work.class_] += 1
        for one in followers:  # due no earlier: each on its own
            slot = self._demand.slot(one.deadline_s, now_s)
            self._take_in(Entry(one, entry.level, one.deadline_s, one.deadline_s, slot, entry.cost))
        return True

    def _leave(self, entry: Entry) -> None:
        self._demand.remove(entry.level, entry.slot, entry.cost)
        key = entry.work.key
        if key is not None and self._leaders.get(key) is entry:
            del self._leaders[key]

    # --- state -------------------------------------------------------------------------------------------------------

    def rebound(self, depths: DepthBounds) -> None:
        """Other bounds of depth from here on, without a jump."""
        self._depth.rebound(depths)

    def state(self, now_s: float) -> State:
        start_s = self._start(now_s)
        lanes = self._picker.lanes
        waiting = {
            class_: Waiting(
                lanes[level].works,
                lanes[level].cost,
                now_s - first.work.arrived_s if (first := lanes[level].first()) else 0.0,
            )
            for class_, level in LEVELS.items()
        }
        late = lanes[LATE]
        return State(
            queues=waiting,
            late=Waiting(late.works, late.cost, now_s - head.work.arrived_s if (head := late.first()) else 0.0),
            slack_s=self._demand.spare(start_s, math.inf),
            delay_s=self._delay(now_s),
            depth=self._depth.depth,
            depth_reason=self._depth.reason,
            confidence=self.cost.confidence,
            admitted=dict(self._tally["admitted"]),
            deferred=dict(self._tally["deferred"]),
            refused=dict(self._refused),
            expired=dict(self._tally["expired"]),
            overhead_s=self.cost.overhead_s,
            token_s=self.cost.token_s,
        )

    def _step(self, now_s: float) -> None:
        """What is done once a period: rates, shares, depth."""
        self._next_step_s = max(self._next_step_s + PERIOD_S, now_s)
        people, others, demand = self._people, self._others, self._demand
        people.step(now_s)
        others.step(now_s)
        limits, token_s = self.limits, self.cost.token_s / self._lanes
        floor = limits.depths.floor
        overhead = self._overhead_tokens() / self._together
        for_people = token_s * (people.fixed + people.works * overhead + people.item * floor)
        for_others = token_s * (others.fixed + others.works * overhead + others.item * floor)
        self._periods += 1
        if self._periods % _DENSITY_EVERY == 0:  # dear, and it changes slowly
            self._backlog = max(0.0, demand.density(RECOMMENDATION, self._start(now_s)) - for_others)
        fixed = people.fixed + others.fixed + (people.works + others.works) * overhead
        ahead = feed_forward(limits.use - self._backlog, token_s, fixed, people.item + others.item)
        self._depth.step(now_s, self._delay(now_s), ahead)
        for level, least in ((RECOMMENDATION, 2 * limits.alert_share), (ALERT, limits.alert_share)):
            free = max(1.0 - limits.alert_share - for_people, least)
            demand.share(level, math.ceil(_SHARE_STEP * free) / _SHARE_STEP)

    def _start(self, now_s: float) -> float:
        """When the engine is free of what it has begun; with several lanes, of its share of it."""
        left = 0.0
        for end_s in self._under_way.values():
            if end_s > now_s:
                left += end_s - now_s
        return now_s + left / self._lanes

    def _delay(self, now_s: float) -> float:
        """Predicted, of an interactive work that comes now."""
        queued = self._picker.lanes[INTERACTIVE].cost * self._demand.token_s
        return self._start(now_s) - now_s + queued

    def _pace(self) -> float:
        """Seconds of the whole engine that a token of demand takes, by cautious prediction."""
        return self.cost.token_s * (1.0 + self.cost.spread) / self.limits.lanes

    def _overhead_tokens(self) -> float:
        return self.cost.overhead_s / self.cost.token_s

    def _drained(self, level: int, cost: float, start_s: float) -> float:
        """When a level has room for so many tokens, whatever of the others is served before."""
        demand, lane = self._demand, self._picker.lanes[level]
        over = lane.cost + cost - self._bounds_s[level] / demand.token_s
        others = demand.totals[WHOLE] - lane.cost
        return start_s + min(others + over + self._picker.dearest, demand.totals[WHOLE]) * demand.token_s

    def _clear(self, slot: float, cost: float, start_s: float, now_s: float) -> float:
        """When a work that keeps its distance to its deadline finds nothing in its way."""
        demand = self._demand
        begun_s = max(self.limits.batch_s, self._picker.dearest * demand.token_s)  # what is begun is not interrupted
        if slot - now_s < cost * demand.token_s + begun_s:
            return start_s + demand.totals[WHOLE] * demand.token_s / demand.shares[1]
        return demand.clear_s(slot, cost, start_s, now_s)

    def _number(self) -> int:
        self._batches += 1
        return self._batches


def _why(claim: Claim, depth: int, otherwise: Why) -> Why:
    if depth >= claim.work.wanted:
        return Why.SUPPLY
    if depth <= claim.least:
        return Why.FLOOR
    return Why.CEILING if depth >= claim.most else otherwise
