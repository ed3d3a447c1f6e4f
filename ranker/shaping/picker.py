"""Which waiting work goes next into the batch.

Rule, while there is time to spare: alerts, while they have had less than their share of what was served; a
recommendation or alert whose slack has fallen under twice its predicted service; people; recommendations; what could
not be promised its own deadline and would meet it were it next; alerts; what is late. Within a level by turns of the
tenants (schedule.py). Time to spare is what demand.py says: how long the engine could do something else with every
promise kept. A work that goes before an earlier deadline uses its own service of it; one for which it does not suffice
waits, and the earliest deadline goes first. So every order that is chosen here keeps every promise that earliest
deadline first would keep.

Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import heapq

from penstock.ranker.shaping.demand import Demand
from penstock.ranker.shaping.schedule import ALERT, LATE, Entry, Heap, Lane, living

_PROMOTED = 2.0  # services
_HOPE = 4.0  # services that must be left to a late work's own deadline: it may share a batch


class Picker:
    """Owns the lanes, one a level: people, recommendations, alerts, late ones."""

    def __init__(self, demand: Demand, alert_share: float) -> None:
        self.lanes = tuple(Lane() for _ in range(LATE + 1))
        self.dearest = 0.0  # cost of any work since nothing waited
        self._demand = demand
        self._alert_share = alert_share
        self._alert_credit = 0.0  # tokens that alerts are behind their share
        self._start_s = 0.0
        self._used_s = 0.0  # of the time to spare, by this batch
        self._by_deadline = False
        self._out_of_order = False  # what `next` gave
        self._hoped: Heap = []  # heap of late works, by their own deadlines

    def push(self, entry: Entry, weight: float) -> None:
        self.lanes[entry.level].push(entry, weight)
        if entry.level == LATE:
            heapq.heappush(self._hoped, (entry.work.deadline_s, entry.work.number, entry))
            if len(self._hoped) > 2 * self.lanes[LATE].works + 64:
                self._hoped = living(self._hoped)
        if entry.cost > self.dearest:
            self.dearest = entry.cost

    def begin(self, start_s: float, *, by_deadline: bool) -> None:
        """A new batch, on an engine that is free from `start_s`. `by_deadline`: nothing goes before its deadline's
        turn.
        """
        self._start_s = start_s
        self._used_s = 0.0
        self._by_deadline = by_deadline

    def next(self) -> Entry | None:
        """The next one; it waits until it is taken."""
        earliest: Entry | None = None
        for lane in self.lanes:
            if lane.works:
                first = lane.first()
                if first is not None and (earliest is None or first.due_s < earliest.due_s):
                    earliest = first
        self._out_of_order = False
        if earliest is None:
            return None
        chosen = self._behind() or (earliest if self._by_deadline else self._preferred())
        if chosen is None or chosen.slot <= earliest.slot:
            return chosen or earliest
        takes_s = chosen.cost * self._demand.token_s
        if self.spare(takes_s) < takes_s:
            return earliest
        self._out_of_order = True
        return chosen

    def take(self, entry: Entry) -> None:
        """What `next` gave goes into the batch."""
        if self._out_of_order:
            self._used_s += entry.cost * self._demand.token_s
        self.lanes[entry.level].take(entry)
        alerts = self.lanes[ALERT].works + self.lanes[LATE].works
        if entry.level >= ALERT:
            self._alert_credit = max(self._alert_credit - entry.cost, -self.dearest)
        elif alerts:
            self._alert_credit = min(
                self._alert_credit + self._alert_share * entry.cost / (1 - self._alert_share), 2 * self.dearest
            )
        else:
            self._alert_credit = 0.0

    def spare(self, wanted_s: float) -> float:
        """Seconds that the batch could take beyond its works' costs, with all else in time; exact up to `wanted_s`."""
        return self._demand.spare(self._start_s, wanted_s + self._used_s) - self._used_s

    @property
    def owed(self) -> float:
        """Tokens that alerts are behind their share."""
        return max(self._alert_credit, 0.0)

    def _behind(self) -> Entry | None:
        """An alert, or a late work, that the share of alerts pays for."""
        alerts, late = self.lanes[ALERT:]
        if self._alert_credit > 0 and (alerts.works or late.works):
            behind = alerts.turn() if alerts.works else self._hope() or late.first()
            if behind is not None and behind.cost <= self._alert_credit:
                return behind
        return None

    def _preferred(self) -> Entry | None:
        people, recommendations, alerts, late = self.lanes
        for lane in (recommendations, alerts):
            if (
                lane.works
                and (first := lane.first()) is not None
                and first.due_s - self._start_s < _PROMOTED * first.cost * self._demand.token_s
            ):
                return first
        for lane in (people, recommendations):
            if lane.works:
                return lane.turn()
        if late.works and (hope := self._hope()) is not None:
            return hope
        return alerts.turn() if alerts.works else late.first()

    def _hope(self) -> Entry | None:
        """A late work that would be in time after all, were it next."""
        hoped = self._hoped
        while hoped:
            deadline_s, _, entry = hoped[0]
            if entry.waiting and self._start_s + _HOPE * entry.cost * self._demand.token_s <= deadline_s:
                return entry
            heapq.heappop(hoped)
        return None
