"""How many of a request's best the language model scores: pure under times that are passed in.

A budget of seconds and what an item took lately say how many fit; the depth is the deepest of a few steps that does, so
that small changes of pace do not change it. Below the least step it goes down by halves, to none at all: a model that
is too slow for its budget is not asked, and the answer says so.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

FORGET = 0.9  # what is left of a measurement when the next one comes
TRUST_S = 30.0  # a measurement this old counts half as slow, and half again after as long


class Reason(StrEnum):
    """What bound a depth."""

    CEILING = "ceiling"  # the deepest step
    SUPPLY = "supply"  # fewer candidates than the step
    BUDGET = "budget"
    UNMEASURED = "unmeasured"  # nothing is known of the pace yet: the least step


@dataclass(frozen=True, slots=True)
class LmDepth:
    items: int
    reason: Reason


def decide_lm_depth(steps: Sequence[int], supply: int, budget_s: float, seconds_an_item: float | None) -> LmDepth:
    """`steps` ascend; `supply` is how many candidates there are."""
    if seconds_an_item is None:
        return _at_most(supply, steps[0], Reason.UNMEASURED)
    fit = budget_s / seconds_an_item if seconds_an_item > 0 else float("inf")
    if fit >= steps[-1]:
        return _at_most(supply, steps[-1], Reason.CEILING)
    if supply <= fit:
        return LmDepth(supply, Reason.SUPPLY)
    reached = [step for step in steps if step <= fit]
    if reached:
        return LmDepth(reached[-1], Reason.BUDGET)
    depth = steps[0]
    while depth > fit:
        depth //= 2
    return LmDepth(depth, Reason.BUDGET)


def _at_most(supply: int, step: int, reason: Reason) -> LmDepth:
    return LmDepth(supply, Reason.SUPPLY) if supply <= step else LmDepth(step, reason)


class Pace:
    """Seconds a scored item takes, waiting included. Safe to share between threads; times are of one monotonic clock.

    A sum of seconds over a sum of items, older ones forgotten: large calls count for more than small ones. What was
    measured long ago is believed less and less, so that a model which once was too slow is tried again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds = 0.0
        self._items = 0.0
        self._measured_s = 0.0

    def measured(self, now_s: float, items: int, seconds: float) -> None:
        """`items` took `seconds` from asking to the answer, or to giving up."""
        if items < 1:
            return
        with self._lock:
            self._seconds = FORGET * self._seconds + seconds
            self._items = FORGET * self._items + items
            self._measured_s = now_s

    def seconds_an_item(self, now_s: float) -> float | None:
        """None before the first measurement."""
        with self._lock:
            if not self._items:
                return None
            doubt = max(0.0, now_s - self._measured_s - TRUST_S) / TRUST_S
            return float(self._seconds / self._items * 0.5**doubt)
