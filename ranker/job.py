"""A rank request on its way through the desk, what it gets when its turn comes, and the results that no pipeline makes.

Owner of a job's fields: the service, which alone ends its future (service.py); of `left`, whoever asked.
"""

from __future__ import annotations

import math
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

from penstock.ranker.shaping.work import Why
from penstock.schemas.events import RankClass, RankRequest, RankResult
from penstock.schemas.validate import MAX_ECHO_BYTES


@dataclass(slots=True, eq=False)
class Job:
    """One request on its way. The future's owner is the service; the caller may leave, never cancel it."""

    request: RankRequest
    deadline_ms: int  # epoch milliseconds; the request's own, or sooner where the caller waits less
    future: Future[RankResult] = field(default_factory=Future)
    left: threading.Event = field(default_factory=threading.Event)
    number: int = 0  # of its work, once it was taken in
    came_s: float = 0.0  # monotonic seconds
    allowed_ms: float = math.inf  # from then to the deadline
    offered: bool = False  # and refused: it has waited since
    deferred: bool = False  # promised a later time than it asked for
    holds_a_thread: bool = False  # of the listener, until it is answered
    refreshes: bool = False  # nobody waits: stale scores are computed anew (refreshing.py), and not once it is late
    fell_back: bool = False  # set by who ranks: answered without the dearest scorer, though there was time for it

    @property
    def urgent(self) -> bool:
        """Whether somebody waits for it, so that a late answer is none."""
        return self.request.class_ is RankClass.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Turn:
    """What a request gets when its turn comes."""

    waited_ms: float
    deadline_s: float  # monotonic seconds; infinite for what is of use however late
    depth: int | None  # candidates, the language model's where there is one; None: all there are
    reason: Why  # what bound the depth
    may_be_stale: bool = False  # scores of an older revision will do: for alerts alone, where load leaves no better


def result_for(request: RankRequest, result: RankResult) -> RankResult:
    """The result of an identical request as this one's."""
    return replace(result, request_id=request.request_id, class_=request.class_, echo=request.echo, trace=request.trace)


def error_result(request: RankRequest, error: BaseException) -> RankResult:
    """The answer of a request that has none, for callers who read results and not exceptions."""
    return RankResult(
        request_id=request.request_id,
        tenant=request.tenant,
        class_=request.class_,
        depth_asked=request.depth or 0,
        error=f"{type(error).__name__}: {error}",
        timings={},
        # What is too large to be let in is too large to be sent back with the reason.
        echo=request.echo if request.echo is not None and len(request.echo) <= MAX_ECHO_BYTES else None,
        trace=request.trace,
    )
