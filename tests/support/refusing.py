"""A shaper that refuses what a test says, and otherwise decides as the one within."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from penstock.ranker.shaping.work import Admission, Refused, Shaper, Why, Work


class Refusing:
    """`after_s` says of a work when to come back, or None: let the shaper decide. `refused` is released a refusal."""

    def __init__(self, shaper: Shaper) -> None:
        self.shaper = shaper
        self.after_s: Callable[[Work], float | None] = lambda work: None
        self.why = Why.LATE
        self.refused = threading.Semaphore(0)
        self.refusals = 0

    def offer(self, work: Work, now_s: float) -> Admission:
        after_s = self.after_s(work)
        if after_s is None:
            return self.shaper.offer(work, now_s)
        self.refusals += 1
        self.refused.release()
        return Refused(after_s, self.why)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.shaper, name)
