"""The shaper that serves: admission, order, depth and spending put together.

An offer: identical to one that waits, it joins it. Else the door (door.py) lets it in, defers it or refuses it.

A batch: the next works (picker.py) until it is as large as the engine takes or as long as people should wait behind;
then tokens above the floors (spend.py): as many as uniform depth would spend, never so many that a promise breaks.

Bounds. While services take no longer than the cost model says: every admitted or deferred work is served by what it
was promised, an admitted one by its deadline; a person's that was refused, offered again after `retry_after_s` with as
much time as it had, is let in when nothing else came, if it would fit an idle engine: the engine serves by deadline
alone, at the floor, until then or until nothing waits. What waits of a level never costs more than the level's bound,
but for those that followed one that left, and stand in the queue themselves. When services take longer than
predicted: an interactive work that can no longer be in time is given up as expired, so that the next one can; what is
deferrable is promised anew and never given up.

Owner: one caller, or one lock. Pure under the times passed in; it keeps no clock and no thread.

Where it stands: life-of-a-query.md, step 4.
"""

from __future__ import annotations

import math

from penstock.ranker.shaping.admission import FairShares
from penstock.ranker.shaping.cost import CostModel, Prior
from penstock.ranker.shaping.demand import Demand
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.door import Door
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.picker import Picker
from penstock.ranker.shaping.regulator import Regulator
from penstock.ranker.shaping.schedule import INTERACTIVE, LATE, LEVELS, RECOMMENDATION, Entry
from penstock.ranker.shaping.spend import Claim, Purse
from penstock.ranker.shaping.tally import Tally
from penstock.ranker.shaping.work import (
    Admission,
    Admitted,
    Batch,
    Deferred,
    Part,
    Refused,
    State,
    Wait,
    Why,
    Work,
)
from penstock.schemas.events import RankClass

_FOLLOWERS = 256  # identical works that one may carry
_PACE_UP, _PACE_DOWN = 1.01, 0.97  # the demand's pace follows the cost model's in steps, since each one costs a recount
_OF_SPARE = 0.25  # of the time that the engine could rest, one batch may go deeper for
_LONE = 0.5  # of the time to a deadline, at most, that one may go deeper for when nobody waits behind it
_TINY = 1e-9
_ADMITTED, _JOINED = Admitted(), Admitted(Why.SHARED)


class TrafficShaper:
    def __init__(self, limits: Limits, prior: Prior, now_s: float = 0.0) -> None:
        self.limits = limits
        self.cost = CostModel(prior, limits.usual_tokens)
        self._demand = Demand(LATE + 1, self._pace())
        self._demand.share(LATE, limits.late_share)
        self._picker = Picker(self._demand, limits.alert_share)
        self._shares = FairShares(limits.weights)
        self._door = Door(limits, self.cost, self._demand, self._picker, self._shares)
        self._regulator = Regulator(limits, self.cost, self._demand, now_s)
        self._purse = Purse()
        self._entries: dict[int, Entry] = {}  # by the number of its work
        self._followers: dict[int, Entry] = {}  # likewise, whom it follows
        self._leaders: dict[str, Entry] = {}  # by key
        self._under_way: dict[int, float] = {}  # batches: when each should end
        self._batches = 0
        self._owed_until_s = -math.inf  # until then a person was told to come back
        self._tally = Tally()

    # --- in ----------------------------------------------------------------------------------------------------------

    def offer(self, work: Work, now_s: float) -> Admission:
        if now_s >= self._regulator.next_s:
            self._step(now_s)
        if work.key is not None and self._joins(work):
            self._tally.admitted[work.class_] += 1
            return _JOINED
        level = LEVELS[work.class_]
        answer = self._door.answer(work, level, self._start(now_s), now_s)
        if isinstance(answer, Refused):
            if answer.reason is not Why.TENANT and not work.again:
                self._regulator.turned_away(work, now_s)
            self._tally.refused[answer.reason] += not work.again
            if level == INTERACTIVE:
                self._owed_until_s = max(self._owed_until_s, now_s + answer.retry_after_s)
            return answer
        entry, why = answer
        self._take_in(entry)
        self._regulator.came(work, level, now_s)
        if entry.level == level:
            self._tally.admitted[work.class_] += 1
            return _ADMITTED if why is Why.FITS else Admitted(why)
        self._tally.deferred[work.class_] += 1
        return Deferred(entry.due_s - entry.cost * self._demand.token_s, why)

    def withdraw(self, number: int) -> bool:
        if (leader := self._followers.pop(number, None)) is not None:
            leader.followers = tuple(work for work in leader.followers if work.number != number)
            return True
        entry = self._entries.pop(number, None)
        if entry is None:
            return False
        self._leave(entry)
        self._picker.lanes[entry.level].drop(entry)
        if entry.level != LATE:
            self._shares.withdrawn(entry.work.tenant, entry.cost)
        self._orphaned(entry)
        return True

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

    def _orphaned(self, leader: Entry) -> None:
        """Whoever followed it is taken in as what it is, by its own deadline, or follows one that is."""
        followers, leader.followers = leader.followers, ()
        for work in sorted(followers, key=lambda one: one.deadline_s):
            del self._followers[work.number]
            if self._joins(work):
                continue
            due_s = work.deadline_s - (leader.promised_s - leader.due_s)  # for several lanes, as much before as it
            slot = self._demand.slot(due_s, work.arrived_s)
            self._shares.charge(work.tenant, leader.cost)
            self._take_in(Entry(work, LEVELS[work.class_], work.deadline_s, due_s, slot, leader.cost))

    # --- out ---------------------------------------------------------------------------------------------------------

    def batch(self, now_s: float, budget_tokens: float) -> Batch | Wait:
        if now_s >= self._regulator.next_s:
            self._step(now_s)
        if not self._entries:
            self._shares.forgive()
            self._picker.dearest = 0.0
            self._owed_until_s = -math.inf  # whoever comes back finds nothing in the way
            return Wait(math.inf)
        picker, cost = self._picker, self.cost
        overhead_s, token_s, caution = cost.overhead_s, cost.token_s, cost.caution
        owed = now_s < self._owed_until_s
        depth = 0.0 if owed else self._regulator.depth.depth / caution
        uniform, ceiling = round(depth), self.limits.depths.ceiling
        room = min(budget_tokens, max(0.0, self.limits.batch_s / caution - overhead_s) / token_s)
        claims: list[Claim] = []
        taken: list[Entry] = []
        expired: list[Work] = []
        planned = least = 0.0
        due_s = math.inf
        picker.begin(self._start(now_s), by_deadline=owed)
        while len(taken) < self.limits.together and (entry := picker.next()) is not None:
            work, promised_s = entry.work, entry.promised_s
            shallow, each = work.least, work.item * (1.0 - work.hits)
            floor = work.fixed + each * shallow
            end_s = now_s + overhead_s + token_s * (least + floor)
            if not taken and end_s > promised_s + _TINY and self._give_up(entry, now_s, expired):
                continue
            most = ceiling if ceiling > shallow else shallow
            if most > work.wanted:
                most = work.wanted
            aim = work.fixed + each * (shallow if uniform < shallow else most if uniform > most else uniform)
            if taken and (planned + aim > room or end_s > due_s or end_s > promised_s):
                break
            picker.take(entry)
            taken.append(entry)
            claims.append(Claim(work, shallow, shallow if owed or entry.level == LATE else most))
            planned += aim
            least += floor
            if promised_s < due_s:
                due_s = promised_s
        if not taken:
            return Batch(self._number(), (), 0.0, now_s, tuple(expired)) if expired else Wait(math.inf)
        last = not (picker.lanes[INTERACTIVE].works or picker.lanes[RECOMMENDATION].works)
        idle = last and self._regulator.depth.reason is Why.CEILING
        if len(taken) == 1 and last:
            room = min(budget_tokens, max(room, _LONE * (due_s - now_s) / token_s / caution))
        return self._filled(taken, claims, tuple(expired), planned, least, room, due_s, now_s, idle=idle)

    def done(self, batch: Batch, now_s: float, seconds: float) -> None:
        if self._under_way.pop(batch.number, None) is None:
            return
        self.cost.observed(batch.tokens, seconds)
        pace, counted = self._pace(), self._demand.token_s
        if not counted * _PACE_DOWN <= pace <= counted:
            self._demand.pace(pace * _PACE_UP)
        if now_s >= self._regulator.next_s:
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
        *,
        idle: bool,
    ) -> Batch:
        """The batch of these works, with what is spent above their floors."""
        cost, token_s = self.cost, self.cost.token_s * (1.0 + self.cost.spread)
        spare_s = self._picker.spare(max(0.0, planned - least) * token_s / self.limits.lanes / _OF_SPARE)
        by_slack = least + max(0.0, _OF_SPARE * spare_s) * self.limits.lanes / token_s
        by_due = ((due_s - now_s) / cost.caution - cost.overhead_s) / token_s
        most = max(min(room, by_slack, by_due), least)
        depths = self._purse.spend(claims, planned, most, self._regulator.depth.depth / cost.caution, idle=idle)
        bound = Why.BUDGET if room <= min(by_slack, by_due) else Why.SLACK
        parts: list[Part] = []
        tokens = 0.0
        for entry, claim, depth in zip(taken, claims, depths, strict=True):
            work = entry.work
            tokens += work.fixed + claim.each * depth
            parts.append(Part(work, depth, claim.why(depth, bound if planned > most else Why.MARGIN)))
            self._leave(entry)
            del self._entries[work.number]
            for one in entry.followers:
                parts.append(Part(one, min(depth, one.wanted), Why.SHARED))
                del self._followers[one.number]
            if entry.level != LATE:
                self._shares.served(work.tenant, entry.cost)
            if entry.level == INTERACTIVE:
                waiting = self._picker.lanes[INTERACTIVE].works
                self._door.standing.left(now_s - work.arrived_s, now_s, waiting)
        self._regulator.began(len(taken))
        number = self._number()
        self._under_way[number] = now_s + cost.overhead_s + tokens * token_s
        return Batch(number, tuple(parts), tokens, now_s, expired)

    def _give_up(self, entry: Entry, now_s: float, expired: list[Work]) -> bool:
        """A work that cannot be in time even alone: whether it went elsewhere."""
        if entry.level == LATE:
            return False  # late as it is, it is served
        if not self._under_way and len(self._entries) == 1 and now_s < entry.promised_s:
            return False  # the engine does nothing else: what is believed of it may be wrong, and this one tells
        self._picker.lanes[entry.level].drop(entry)
        self._leave(entry)
        self._shares.withdrawn(entry.work.tenant, entry.cost)
        del self._entries[entry.work.number]
        if entry.work.class_ is RankClass.INTERACTIVE:
            expired.append(entry.work)
            self._tally.expired[entry.work.class_] += 1
        else:
            self._take_in(self._door.promise(entry.work, entry.cost, self._start(now_s), now_s))
        self._orphaned(entry)
        return True

    def _leave(self, entry: Entry) -> None:
        self._demand.remove(entry.level, entry.slot, entry.cost)
        key = entry.work.key
        if key is not None and self._leaders.get(key) is entry:
            del self._leaders[key]

    # --- state -------------------------------------------------------------------------------------------------------

    def rebound(self, depths: DepthBounds) -> None:
        """Other bounds of depth from here on, without a jump."""
        self._regulator.depth.rebound(depths)

    def state(self, now_s: float) -> State:
        depth = self._regulator.depth
        return self._tally.state(
            now_s,
            self._picker.lanes,
            slack_s=self._demand.spare(self._start(now_s), math.inf),
            delay_s=self._delay(now_s),
            depth=depth.depth,
            depth_reason=depth.reason,
            confidence=self.cost.confidence,
            overhead_s=self.cost.overhead_s,
            token_s=self.cost.token_s,
        )

    def _step(self, now_s: float) -> None:
        self._regulator.step(now_s, self._start(now_s), self._delay(now_s), self._picker.lanes[LATE].cost)

    def _start(self, now_s: float) -> float:
        """When the engine is free of what it has begun; with several lanes, of its share of it."""
        left = 0.0
        for end_s in self._under_way.values():
            if end_s > now_s:
                left += end_s - now_s
        return now_s + left / self.limits.lanes

    def _delay(self, now_s: float) -> float:
        """Predicted, of an interactive work that comes now."""
        queued = self._picker.lanes[INTERACTIVE].cost * self._demand.token_s
        return self._start(now_s) - now_s + queued

    def _pace(self) -> float:
        """Seconds of the whole engine that a token of demand takes, by cautious prediction."""
        return self.cost.token_s * (1.0 + self.cost.spread) / self.limits.lanes

    def _number(self) -> int:
        self._batches += 1
        return self._batches
