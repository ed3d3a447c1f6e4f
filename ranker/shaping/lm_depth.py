"""How many of a request's best the language model scores: pure under times that are passed in.

A budget of seconds and what calls took lately say how many fit; the depth is the deepest of a few steps that does, so
that small changes of pace do not change it. Below the least step it goes down by halves, to none at all: a model that
is too slow for its budget is not asked, and the answer says so.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FORGET = 0.8  # what is left of a measurement when the next one comes
TRUST_S = 30.0  # a measurement this old counts half as slow, and half again after as long
_SPREAD = 4.0  # items squared: calls of like sizes do not tell what is fixed from what each item costs


class Reason(StrEnum):
    """What bound a depth."""

    CEILING = "ceiling"  # the deepest step
    SUPPLY = "supply"  # fewer candidates than the step
    BUDGET = "budget"
    UNMEASURED = "unmeasured"  # nothing is known of the pace yet: the least step
    PAGE = "page"  # as on the page before


@dataclass(frozen=True, slots=True)
class LmDepth:
    items: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class CallCost:
    """What a call takes: seconds, and seconds an item; `seen_s` is what an item of the last call took."""

    fixed_s: float
    item_s: float
    seen_s: float = math.inf

    def fits(self, items: int, budget_s: float) -> bool:
        return self.fixed_s + items * self.item_s <= budget_s


def decide_lm_depth(steps: Sequence[int], supply: int, budget_s: float, cost: CallCost | None) -> LmDepth:
    """`steps` ascend; `supply` is how many candidates there are."""
    if supply <= 0:
        return LmDepth(0, Reason.SUPPLY)
    if cost is None:
        return _at_most(supply, steps[0], Reason.UNMEASURED)
    if cost.fits(steps[-1], budget_s):
        return _at_most(supply, steps[-1], Reason.CEILING)
    if cost.fits(supply, budget_s):
        return LmDepth(supply, Reason.SUPPLY)
    depth = next((step for step in reversed(steps) if cost.fits(step, budget_s)), steps[0])
    while depth and not cost.fits(depth, budget_s):
        depth //= 2
    # A pace that changes can look like a large fixed cost. One item at least is asked, unless the last were too dear.
    return LmDepth(min(max(depth, int(cost.seen_s <= budget_s)), supply), Reason.BUDGET)


def _at_most(supply: int, step: int, reason: Reason) -> LmDepth:
    return LmDepth(supply, Reason.SUPPLY) if supply <= step else LmDepth(step, reason)


class Pace:
    """What a call of so many items takes, waiting for the model included. Safe to share between threads; times are of
    one monotonic clock.

    Least squares of seconds over items, older calls forgotten; through the origin where sizes were too alike, or where
    the line would say that something costs less than nothing. What was measured long ago is believed less and less, so
    that a model which once was too slow is tried again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = (0.0, 0.0, 0.0, 0.0, 0.0)  # of weights, items, seconds, items squared, items times seconds
        self._last = 0.0  # seconds an item, of the last call
        self._measured_s = 0.0

    def measured(self, now_s: float, items: int, seconds: float) -> None:
        """`items` took `seconds` from asking to the answer, or to giving up."""
        if items < 1:
            return
        fresh = (1.0, float(items), seconds, float(items * items), items * seconds)
        with self._lock:
            self._sums = tuple(FORGET * old + new for old, new in zip(self._sums, fresh, strict=True))  # type: ignore[assignment]  # five stay five
            self._last = seconds / items
            self._measured_s = now_s

    def cost(self, now_s: float) -> CallCost | None:
        """None before the first measurement."""
        with self._lock:
            weight, items, seconds, squares, products = self._sums
            measured_s, last = self._measured_s, self._last
        if not weight:
            return None
        believed = 0.5 ** (max(0.0, now_s - measured_s - TRUST_S) / TRUST_S)
        mean_items, mean_seconds = items / weight, seconds / weight
        spread = squares / weight - mean_items**2
        if spread >= _SPREAD:
            item_s = (products / weight - mean_items * mean_seconds) / spread
            fixed_s = mean_seconds - item_s * mean_items
            if item_s > 0 and fixed_s >= 0:
                return CallCost(believed * fixed_s, believed * item_s, believed * last)
        return CallCost(0.0, believed * mean_seconds / mean_items, believed * last)
