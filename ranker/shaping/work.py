"""What a shaper decides on and what it decides: works, admissions, batches, and the protocol of all shapers.

Units. Times are seconds of one clock that is passed in (epoch or monotonic, but one). Costs are tokens of the engine.
A depth is a number of candidates. A work's tokens at a depth count only what has to be computed: what the score cache
answers costs nothing.

Invariant, of every shaper: an admitted or deferred work leaves exactly once, as a part of a batch or as expired, or is
withdrawn. A refused one was never taken in.

Owner: whoever calls. Works and decisions are frozen; a shaper is not safe for threads.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from penstock.schemas.events import RankClass


class Why(StrEnum):
    """Why a work was let in, put off or refused, or got its depth. Every one is a metric's label."""

    # admission
    FITS = "fits"  # its deadline can be met
    SHARED = "shared"  # an identical work waits already: scored once
    LATE = "late"  # its deadline cannot be met behind what was promised before
    QUEUE = "queue"  # what may wait of its class, in cost, waits already
    TENANT = "tenant"  # its tenant is ahead of its fair share while others wait
    STANDING = "standing"  # the interactive queue has stood for too long: CoDel
    # depth
    CEILING = "ceiling"  # as deep as the setting allows
    FLOOR = "floor"  # no deeper than still is an answer
    SUPPLY = "supply"  # all candidates there are
    LOAD = "load"  # what the controller gives at this load
    MARGIN = "margin"  # what its further candidates were worth beside the others'
    SLACK = "slack"  # deeper would have made another late
    BUDGET = "budget"  # what the engine takes at once


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One request as the shaper sees it."""

    number: int  # unique among those that wait
    tenant: str
    class_: RankClass
    arrived_s: float
    deadline_s: float
    fixed: float  # tokens whatever its depth: its prefix
    item: float  # tokens a candidate whose score is not in the cache
    wanted: int  # candidates that there are
    floor: int  # the least depth that still is an answer; more than `wanted`: all of them are
    margins: NDArray[np.float64] = field(repr=False)  # [wanted], what each further candidate adds; not rising
    hits: float = 0.0  # the share of its candidates, 0 to 1, that the score cache answers
    key: str | None = None  # what it has in common with identical works; None: nothing
    again: bool = False  # it was refused before and has waited since: it has come once, and was turned away once

    @property
    def least(self) -> int:
        """The depth that it gets at least."""
        return self.floor if self.floor < self.wanted else self.wanted

    def tokens(self, depth: int) -> float:
        """What it costs at this depth."""
        return self.fixed + self.item * (1.0 - self.hits) * depth


@dataclass(frozen=True, slots=True)
class Admitted:
    """Served by its deadline, when services take what the cost model says. LATE: by that it is not, and it is tried
    since the engine has nothing else to do: who never tried an engine believed too slow would never learn better.
    """

    reason: Why = Why.FITS


@dataclass(frozen=True, slots=True)
class Deferred:
    """Taken in, to be served later than it asked for: not before `release_s` unless there is nothing else to do."""

    release_s: float
    reason: Why


@dataclass(frozen=True, slots=True)
class Refused:
    """Not taken in. Asked again after `retry_after_s`, it would be let in had nothing else come."""

    retry_after_s: float
    reason: Why


Admission = Admitted | Deferred | Refused


@dataclass(frozen=True, slots=True)
class Part:
    """A work and how deep to rank it."""

    work: Work
    depth: int
    reason: Why


@dataclass(frozen=True, slots=True)
class Batch:
    """What to do next. With no parts: only answer what has expired."""

    number: int
    parts: tuple[Part, ...]
    tokens: float  # that are to be computed, all parts together
    began_s: float
    expired: tuple[Work, ...] = ()  # to be answered as late: they can no longer be served in time


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do before `until_s`, or before the next offer; infinity: before the next offer."""

    until_s: float


@dataclass(frozen=True, slots=True)
class Waiting:
    """One class's queue."""

    works: int
    tokens: float  # at the floor depth
    oldest_s: float  # how long its oldest has waited


@dataclass(frozen=True, slots=True)
class State:
    """For metrics and `penstock top`."""

    queues: dict[RankClass, Waiting]
    late: Waiting  # what could not be promised its own deadline
    slack_s: float  # how long the engine could rest without making anything late
    delay_s: float  # predicted, of an interactive work that comes at this moment
    depth: float  # uniform, that the controller gives
    depth_reason: Why
    confidence: float  # in the cost model, 0 to 1
    admitted: dict[RankClass, int]  # since the start, as the next three
    deferred: dict[RankClass, int]
    refused: dict[Why, int]
    expired: dict[RankClass, int]
    overhead_s: float = 0.0  # of a batch, as the cost model has it; 0: there is no model
    token_s: float = 0.0  # likewise, of a token


class Shaper(Protocol):
    """Who is let in, who is next and how deep. Pure under the times that are passed in, which never fall."""

    def offer(self, work: Work, now_s: float) -> Admission: ...

    def batch(self, now_s: float, budget_tokens: float) -> Batch | Wait:
        """What a free engine does next, in at most `budget_tokens`; one work whose floor needs more goes alone.

        Several batches may be under way at once, as many as the shaper was told that there are lanes.
        """
        ...

    def done(self, batch: Batch, now_s: float, seconds: float) -> None:
        """A batch with parts has ended; it took `seconds` of its lane."""
        ...

    def withdraw(self, number: int) -> bool:
        """True when the work waited, and now will not be served."""
        ...

    def state(self, now_s: float) -> State: ...
