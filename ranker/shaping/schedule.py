"""Who is next: earliest deadline first where time is short, by turns of the tenants where it is not.

A `Lane` holds the waiting works of one level in two orders at once. By deadline: a heap. By turns: weighted deficit
round-robin over the tenants (Shreedhar and Varghese 1995), in tokens at the floor depth, each tenant's own works by
deadline. A work leaves both when it is taken from either, and is charged to its tenant either way.

Bound on waiting. With Q the dearest work since the lane was empty and w the weights, a tenant that always has works
waiting, and whose turns are not overruled by a deadline, waits between two of its works for at most (1/w + 1) rounds,
and a round serves at most the sum over the other tenants j of (w_j + 1) · Q tokens. Turns overruled by deadlines are
bounded by the deadlines: an admitted work is served by its own. So none starves.

O(log n) an offer and a turn. Owner: one shaper; not safe for threads.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from penstock.ranker.shaping.work import Work
from penstock.schemas.events import RankClass

INTERACTIVE, RECOMMENDATION, ALERT, LATE = range(4)  # levels: who gives way to whom
LEVELS = {
    RankClass.INTERACTIVE: INTERACTIVE,
    RankClass.RECOMMENDATION: RECOMMENDATION,
    RankClass.ALERT: ALERT,
}
_DEEPEST_DEBT = 2.0  # quanta that a tenant whose deadlines came first may owe


@dataclass(slots=True, eq=False)
class Entry:
    """A waiting work and what it was promised. `waiting` turns false exactly once."""

    work: Work
    level: int
    promised_s: float  # served by then
    due_s: float  # what it is ordered by: the same, but for what several lanes take longer
    slot: float  # of the demand it was counted in
    cost: float  # tokens at the floor depth and a batch's overhead in tokens, whole
    waiting: bool = True
    followers: tuple[Work, ...] = ()  # identical works, scored with it


Heap = list[tuple[float, int, Entry]]


@dataclass(slots=True, eq=False)
class _Flow:
    """One tenant's works."""

    weight: float
    heap: Heap = field(default_factory=list)
    works: int = 0
    deficit: float = 0.0
    visited: bool = False  # its quantum of this turn has been given


def _head(heap: Heap) -> Entry | None:
    while heap and not heap[0][2].waiting:
        heapq.heappop(heap)
    return heap[0][2] if heap else None


class Lane:
    """The waiting works of one level."""

    def __init__(self) -> None:
        self.works = 0
        self.cost = 0.0
        self._heap: Heap = []
        self._flows: dict[str, _Flow] = {}
        self._tenants = 0  # with works
        self._ring: deque[str] = deque()  # tenants, whose turn it is first; of those without works a few
        self._quantum = 1.0

    def push(self, entry: Entry, weight: float) -> None:
        flow = self._flows.get(entry.work.tenant)
        if flow is None:
            flow = self._flows[entry.work.tenant] = _Flow(weight)
            self._ring.append(entry.work.tenant)
        key = (entry.due_s, entry.work.number, entry)
        heapq.heappush(self._heap, key)
        heapq.heappush(flow.heap, key)
        if not flow.works:
            self._tenants += 1
        flow.works += 1
        self.works += 1
        self.cost += entry.cost
        self._quantum = max(self._quantum, entry.cost)

    def first(self) -> Entry | None:
        """The one with the earliest deadline."""
        heap = self._heap
        if heap and heap[0][2].waiting:
            return heap[0][2]
        return _head(heap)

    def turn(self) -> Entry | None:
        """The one whose tenant's turn it is."""
        ring, flows = self._ring, self._flows
        while ring:
            flow = flows[ring[0]]
            head = _head(flow.heap)
            if head is None:
                del flows[ring.popleft()]
                continue
            if not flow.visited:
                flow.deficit += flow.weight * self._quantum
                flow.visited = True
            if head.cost <= flow.deficit:
                return head
            flow.visited = False
            ring.rotate(-1)
        return None

    def take(self, entry: Entry) -> None:
        """The entry is served: its tenant is charged."""
        flow = self._remove(entry)
        flow.deficit = max(flow.deficit - entry.cost, -_DEEPEST_DEBT * flow.weight * self._quantum)
        if not flow.works:
            flow.deficit = min(flow.deficit, 0.0)  # who has nothing waiting saves nothing

    def drop(self, entry: Entry) -> None:
        """The entry leaves without being served."""
        self._remove(entry)

    def _remove(self, entry: Entry) -> _Flow:
        entry.waiting = False
        flow = self._flows[entry.work.tenant]
        flow.works -= 1
        self.works -= 1
        self.cost -= entry.cost
        if not self.works:
            self._quantum = 1.0
        if len(self._heap) > 2 * self.works + 64:
            self._heap = living(self._heap)
        if not flow.works:
            flow.heap.clear()
            self._tenants -= 1
            if len(self._flows) > 2 * self._tenants + 64:
                self._forget()
        elif len(flow.heap) > 2 * flow.works + 64:
            flow.heap = living(flow.heap)
        return flow

    def _forget(self) -> None:
        """The tenants without works, which only their turn would take out: a level may be served by deadline alone."""
        self._flows = {tenant: flow for tenant, flow in self._flows.items() if flow.works}
        self._ring = deque(tenant for tenant in self._ring if tenant in self._flows)


def living(heap: Heap) -> Heap:
    """Without those that have left: at least half of them, so it costs O(1) for each."""
    kept = [key for key in heap if key[2].waiting]
    heapq.heapify(kept)
    return kept
