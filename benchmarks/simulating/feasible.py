"""What a clairvoyant schedule could have met: preemptive earliest deadline first at the floor depth, overhead-free.

The oracle knows the engine's line and pays no overhead, no noise and no batching, may stop a request and go on with it
later, and gives up those that cannot be met any more at the moment it comes to them. Where everything can be met,
earliest deadline first meets everything; else it is a schedule that misses some, and what it met is the feasible set.
"""

from __future__ import annotations

import heapq

import numpy as np
from numpy.typing import NDArray

from benchmarks.simulating.plant import Plant
from benchmarks.simulating.workload import Workload


def feasible(workload: Workload, plant: Plant) -> NDArray[np.bool_]:
    """Whether each request is met."""
    arrived = workload.arrived_s.tolist()
    deadline = workload.deadline_s.tolist()
    left = (workload.floor_cost * plant.token_s).tolist()
    met = np.zeros(len(arrived), bool)
    waiting: list[tuple[float, int]] = []
    now, at = 0.0, 0
    while waiting or at < len(arrived):
        if not waiting:
            now = max(now, arrived[at])
        while at < len(arrived) and arrived[at] <= now:
            heapq.heappush(waiting, (deadline[at], at))
            at += 1
        by, one = waiting[0]
        if now + left[one] > by:
            heapq.heappop(waiting)
            continue
        until = min(now + left[one], arrived[at] if at < len(arrived) else float("inf"))
        left[one] -= until - now
        now = until
        if left[one] <= 1e-9:
            met[one] = True
            heapq.heappop(waiting)
    return met
