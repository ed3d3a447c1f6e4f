"""What waits for a forward, and whose turn is next: pure under times that are passed in.

The earliest deadline comes first and decides what kind of forward is next: one of interactive requests, which is kept
small, or one of the others. Into it go the waiting items of that kind, request by request in the order of their
deadlines, until it is full. What did not fit keeps its place, so a large request is served over several turns and a
more urgent one passes it between two of them. A request whose forward gave nothing is tried again alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.backends.scorer import nobody_left
from penstock.ranker.engine.plan import Request


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the engine said of one request."""

    logits: NDArray[np.float64]  # [items], yes - no
    timings: dict[str, float]  # milliseconds in queue, pack, forward, reply
    forwards: int  # that held a part of it


@dataclass(slots=True, eq=False)
class Pending:
    """One request on its way. Owned by the engine; the caller waits for `future` and may `leave`."""

    request: Request
    deadline_s: float  # of the engine's clock
    arrived_s: float
    number: int  # by arrival
    has_left: Callable[[], bool] = nobody_left
    future: Future[Answer] = field(default_factory=Future)
    lengths: list[int] = field(init=False)  # of its items
    cost: int = field(init=False)  # tokens of the whole request
    remaining: deque[int] = field(init=False)  # items that are in no forward, shortest first
    unscored: int = field(init=False)  # items without a score, those in flight included
    logits: NDArray[np.float64] = field(init=False)
    alone: bool = False  # it shares no forward: one that it was in gave nothing
    failures: int = 0  # of forwards that held a part of it
    forwards: int = 0
    spent_ms: dict[str, float] = field(default_factory=dict)
    _gone: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.lengths = [len(item) for item in self.request.items]
        self.cost = len(self.request.prefix) + sum(self.lengths)
        self.remaining = deque(np.argsort(np.array(self.lengths, np.int64), kind="stable").tolist())
        self.unscored = len(self.lengths)
        self.logits = np.full(len(self.lengths), np.nan)

    @property
    def gone(self) -> bool:
        """Nobody waits for it."""
        return self._gone.is_set() or self.has_left()

    def leave(self) -> None:
        """Whoever asked no longer waits: what has not begun is not done."""
        self._gone.set()

    def spend(self, stage: str, seconds: float) -> None:
        self.spent_ms[stage] = self.spent_ms.get(stage, 0.0) + seconds * 1000


@dataclass(frozen=True, slots=True)
class Part:
    """Items of one request that go into the next forward."""

    of: Pending
    items: tuple[int, ...]

    @property
    def request(self) -> Request:
        whole = self.of.request
        return Request(whole.prefix, tuple(whole.items[at] for at in self.items), whole.interactive)


def choose(waiting: Iterable[Pending], budget: int, interactive: int) -> list[Part]:
    """The parts of the next forward; empty when nothing waits. They are still in `remaining`: see `taken`."""
    order = sorted((one for one in waiting if one.remaining), key=lambda one: (one.deadline_s, one.number))
    if not order:
        return []
    alone = [one for one in order if one.alone]
    kind = (alone or order)[0].request.interactive
    room = interactive if kind else budget
    parts: list[Part] = []
    prefixes: set[bytes] = set()
    for one in alone[:1] or [one for one in order if one.request.interactive is kind]:
        prefix = one.request.prefix.tobytes()
        left = room if prefix in prefixes else room - len(one.request.prefix)
        items: list[int] = []
        for at in one.remaining:
            length = one.lengths[at]
            if length > left and (parts or items):
                break
            items.append(at)
            left -= length
        if items:
            parts.append(Part(one, tuple(items)))
            prefixes.add(prefix)
            room = left
        if room <= 0:
            break
    return parts


def taken(parts: Sequence[Part]) -> None:
    """Take what `choose` gave off what remains."""
    for part in parts:
        for _ in part.items:
            part.of.remaining.popleft()


def given_back(parts: Sequence[Part]) -> None:
    """Undo `taken`: their forwards gave no scores. Those of the last one stand first."""
    for part in parts:
        part.of.remaining.extendleft(reversed(part.items))
