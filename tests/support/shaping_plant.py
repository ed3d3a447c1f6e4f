"""An engine in virtual time under a shaper: every batch takes overhead + per token · tokens, times what `slow` says."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from penstock.ranker.shaping.work import Admission, Batch, Part, Refused, Shaper, Wait, Work
from penstock.schemas.events import RankClass

FIXED, ITEM = 60.0, 100.0  # tokens
PATIENCE_S = {RankClass.INTERACTIVE: 0.5, RankClass.RECOMMENDATION: 5.0, RankClass.ALERT: 30.0}


def work(
    number: int,
    arrived_s: float = 0.0,
    class_: RankClass = RankClass.INTERACTIVE,
    *,
    tenant: str = "t",
    patience_s: float | None = None,
    wanted: int = 1_000,
    floor: int = 131,
    half: float = 100.0,
    key: str | None = None,
    hits: float = 0.0,
    item: float = ITEM,
) -> Work:
    """A request whose margins halve every `half` candidates."""
    deadline_s = arrived_s + (PATIENCE_S[class_] if patience_s is None else patience_s)
    margins = np.exp2(-np.arange(wanted) / half)
    return Work(number, tenant, class_, arrived_s, deadline_s, FIXED, item, wanted, floor, margins, hits, key)


@dataclass(slots=True)
class Ran:
    """What became of the works: at most one of `served` and `expired` for each."""

    admissions: dict[int, Admission] = field(default_factory=dict)
    served: dict[int, tuple[float, Part]] = field(default_factory=dict)  # when it ended
    expired: dict[int, float] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    depths: list[tuple[float, float]] = field(default_factory=list)  # (time, the controller's)
    delays: list[tuple[float, float]] = field(default_factory=list)
    now_s: float = 0.0


def run(
    shaper: Shaper,
    arrivals: Iterable[Work],
    *,
    overhead_s: float,
    token_s: float,
    budget: float = 65_536.0,
    lanes: int = 1,
    slow: Callable[[float], float] = lambda _: 1.0,
    until_s: float = math.inf,
    watch_s: float = 0.0,
    after: Callable[[Ran, float], None] = lambda *_: None,
) -> Ran:
    """Everything that arrives, and the engine until nothing waits. `after` is called after each event."""
    ran = Ran()
    coming = sorted(arrivals, key=lambda one: one.arrived_s)
    coming.reverse()
    ends: list[tuple[float, int, Batch, float]] = []
    watch_at = 0.0
    while True:
        while len(ends) < lanes:
            out = shaper.batch(ran.now_s, budget)
            if isinstance(out, Wait):
                break
            for one in out.expired:
                assert one.number not in ran.served and one.number not in ran.expired, f"{one.number} left twice"
                ran.expired[one.number] = ran.now_s
            if not out.parts:
                continue
            ran.batches.append(out)
            seconds = (overhead_s + token_s * out.tokens) * slow(ran.now_s)
            heapq.heappush(ends, (ran.now_s + seconds, out.number, out, seconds))
            for part in out.parts:
                number = part.work.number
                assert number not in ran.served and number not in ran.expired, f"{number} left twice"
                ran.served[number] = (ran.now_s + seconds, part)
        next_s = min(ends[0][0] if ends else math.inf, coming[-1].arrived_s if coming else math.inf)
        if next_s == math.inf or next_s > until_s:
            return ran
        ran.now_s = next_s
        if ends and ends[0][0] <= next_s:
            end_s, _, batch, seconds = heapq.heappop(ends)
            shaper.done(batch, end_s, seconds)
        else:
            one = coming.pop()
            ran.admissions[one.number] = shaper.offer(one, next_s)
        if watch_s and next_s >= watch_at:
            watch_at = next_s + watch_s
            state = shaper.state(next_s)
            ran.depths.append((next_s, state.depth))
            ran.delays.append((next_s, state.delay_s))
        after(ran, ran.now_s)


def taken_in(ran: Ran) -> set[int]:
    return {number for number, one in ran.admissions.items() if not isinstance(one, Refused)}
