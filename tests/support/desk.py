"""A ranker's desk as tests need it: the production shaper, described works, and whatever ranks."""

from __future__ import annotations

import time
from collections.abc import Callable

from penstock.ranker.estimates import Estimates
from penstock.ranker.policy import DepthLimits
from penstock.ranker.service import Capacity, Rank, RankService
from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.shaper import TrafficShaper

DEPTHS = DepthBounds(50, 250, 2_000)
PRIOR = Prior(0.001, 1e-5)  # seconds a batch and a candidate: of an engine that is in no hurry


def make_desk(
    rank: Rank,
    *,
    workers: int = 2,
    together: int = 1,
    places: int = 64,
    stuck_s: float = 60.0,
    now_ms: Callable[[], int],
    clock: Callable[[], float] = time.monotonic,
    prior: Prior = PRIOR,
    depths: DepthBounds = DEPTHS,
    **limits: float,
) -> RankService:
    """Not started. `workers` lanes, each of `together` works at once; `limits` of shaping as a test needs them."""
    bounds = Limits(depths=depths, lanes=workers, together=together, usual_tokens=250.0, **limits)
    shaper = TrafficShaper(bounds, prior, clock())
    estimates = Estimates(depths, DepthLimits(250, 2_000), dear=False, clock=clock)
    return RankService(
        shaper, estimates.work, rank, Capacity(workers, together, places, stuck_s=stuck_s), now_ms, clock
    )
