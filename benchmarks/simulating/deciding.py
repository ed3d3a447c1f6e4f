"""What a decision costs while 10,000 works wait. Of each work two things are decided: whether it is let in, and when
and how deep it is served. The cost is that of all calls (`offer`, `batch`, `done`) over the number of such decisions.

The 10,000 are hourly digests, before an engine FASTER times as fast as the measured one, for which they are work for a
few minutes; then for each batch that it takes as many works come as went, of all kinds as the workload has them.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.simulating.plant import BUDGET, ITEM_TOKENS, PREFIX_TOKENS, Plant
from benchmarks.simulating.workload import (
    ALERT_ITEMS,
    CEILING,
    CLASSES,
    DEADLINES,
    FLOOR,
    KINDS,
    SHARES,
    TENANTS,
    relevance,
)
from penstock.ranker.shaping.work import Batch, Refused, Shaper, Work

QUEUED, MEASURED, ROUNDS = 10_000, 1_500, 5
FASTER = 4.0
_MOST_OFFERS = 3 * QUEUED


def decisions(shaper: Shaper, plant: Plant) -> dict[str, float]:
    """Microseconds of CPU a decision, the median of ROUNDS; by part, a call; and how many waited."""
    one = _Deciding(shaper, plant)
    one.fill()
    rounds = [one.round() for _ in range(ROUNDS)]
    by_decision = [took["all"] / took["decisions"] * 1e6 for took in rounds]
    return {
        "us": float(np.median(by_decision)),
        "least": min(by_decision),
        "most": max(by_decision),
        **{
            f"{name}_us": float(np.median([took[name] / took[f"{name}s"] * 1e6 for took in rounds]))
            for name in ("offer", "batch")
        },
        "waiting": float(one.waiting),
    }


class _Deciding:
    def __init__(self, shaper: Shaper, plant: Plant) -> None:
        self._shaper, self._plant = shaper, plant
        self._rng = np.random.default_rng(0)
        self._margins = relevance()[1]
        self._number = 0
        self._now = 0.0
        self.waiting = 0

    def fill(self) -> None:
        while self.waiting < QUEUED:
            self._now += 1e-3
            self.waiting += self._offer(self._work("digest"))
            if self._number % 50 == 0:
                self.waiting -= self._serve()  # which teaches it the engine's pace
            if self._number > _MOST_OFFERS:
                raise RuntimeError(f"only {self.waiting} of {self._number} works wait: expected {QUEUED} to be let in")

    def round(self) -> dict[str, float]:
        """Seconds in all calls, in offers and in batches (with `done`), and how many there were."""
        took = dict.fromkeys(("all", "decisions", "offer", "offers", "batch", "batchs"), 0.0)
        while took["decisions"] < 2 * MEASURED:
            before = time.thread_time()
            served = self._serve()
            passed = time.thread_time() - before
            took["batch"] += passed
            took["batchs"] += 1
            self.waiting -= served
            kinds = self._rng.choice(KINDS, max(1, served), p=[SHARES[kind] for kind in KINDS])
            works = [self._work(str(kind)) for kind in kinds]
            before = time.thread_time()
            came = sum(self._offer(work) for work in works)
            took["offer"] += time.thread_time() - before
            took["offers"] += len(works)
            self.waiting += came
            took["decisions"] += served + len(works)
        took["all"] = took["offer"] + took["batch"]
        return took

    def _offer(self, work: Work) -> bool:
        return not isinstance(self._shaper.offer(work, self._now), Refused)

    def _serve(self) -> int:
        batch = self._shaper.batch(self._now, BUDGET)
        if not isinstance(batch, Batch):
            return 0
        if batch.parts:
            seconds = (self._plant.overhead_s + self._plant.token_s * batch.tokens) / FASTER
            self._now += seconds
            self._shaper.done(batch, self._now, seconds)
        return len(batch.parts) + len(batch.expired)

    def _work(self, kind: str) -> Work:
        self._number += 1
        items = ALERT_ITEMS if kind == "instant" else CEILING
        return Work(
            number=self._number,
            tenant=f"t{int(self._rng.integers(TENANTS))}",
            class_=CLASSES[kind],
            arrived_s=self._now,
            deadline_s=self._now + DEADLINES[kind],
            fixed=float(PREFIX_TOKENS),
            item=float(ITEM_TOKENS),
            wanted=items,
            floor=FLOOR,
            margins=self._margins[self._number % len(self._margins), :items],
        )
