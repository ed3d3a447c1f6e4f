"""The desk as settings ask for it: the shaper, what it expects of requests, and how many are served at once.

Without a language model a lane is a thread and serves one request after the other. With one there are two lanes to one
engine, so that one batch is prepared while the other's is in it, and the works of a batch run side by side: the engine
packs them. What the preparation takes is learnt, and is no time of the engine.

What a batch takes is measured once, by the dearest scorer, before anybody asks; retrieval and the rest is learnt from
the first batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from penstock.infra.settings import RankerSettings
from penstock.ranker.analyst import Models
from penstock.ranker.backends.load import on_a_gpu
from penstock.ranker.backends.scorer import Scorer
from penstock.ranker.cache import ScoreCache
from penstock.ranker.candidates import Retrieval
from penstock.ranker.decisions import Counted
from penstock.ranker.estimates import Estimates
from penstock.ranker.feature_store import FeatureStore
from penstock.ranker.known_answer import known_pairs
from penstock.ranker.pipeline import Pipeline
from penstock.ranker.policy import DepthLimits
from penstock.ranker.refreshing import Refreshing
from penstock.ranker.scoring import Scorers
from penstock.ranker.service import Capacity, RankService
from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.limits import limits_from
from penstock.ranker.shaping.shaper import TrafficShaper

LANES = 2  # with a language model
FLOOR = 50  # candidates that the fused scorer ranks at least, alone
SIZES = (1, 8)  # items of the measured calls
REPEATS = 3  # the fastest counts


@dataclass(frozen=True, slots=True)
class Measured:
    prior: Prior
    fixed: float  # tokens of the query's side
    item: float  # tokens of a candidate


def make_desk(
    settings: RankerSettings,
    scorers: Scorers,
    *,
    models: Models,
    retrieval: Retrieval,
    shards: int,
    store: FeatureStore,
    cache: ScoreCache,
    now_ms: Callable[[], int],
    clock: Callable[[], float],
) -> tuple[RankService, Pipeline]:
    """The desk, not started, and the pipeline behind it. Raises what a scorer raises."""
    dear, workers = scorers.language_model is not None, settings.workers_in_force
    lanes = min(LANES, workers) if dear else workers
    together = -(-workers // lanes)
    measured = measure(scorers.dearest)
    usual = scorers.ceiling * measured.item if dear else settings.depth
    if dear and settings.scorer == "engine":
        usual = settings.forward_tokens
    engines = 1 if dear else lanes
    limits = limits_from(settings.shaping, on_a_gpu=on_a_gpu(settings), lanes=engines, usual_tokens=usual)
    limits = replace(limits, together=together)
    if not dear:
        limits = replace(limits, depths=DepthBounds(min(FLOOR, settings.depth), settings.depth, settings.max_depth))
    depth_limits = DepthLimits(default=settings.depth, ceiling=settings.max_depth)
    estimates = Estimates(
        limits.depths,
        depth_limits,
        dear=dear,
        tokens=(measured.fixed, measured.item),
        kept_s=settings.score_cache_ttl_s,
        clock=clock,
    )
    pipeline = Pipeline(
        models=models,
        retrieval=retrieval,
        shards=shards,
        store=store,
        cache=cache,
        scorers=scorers,
        limits=depth_limits,
        estimates=estimates,
        now_ms=now_ms,
        clock=clock,
    )
    capacity = Capacity(
        lanes,
        together,
        settings.max_queue,
        budget=lambda: max(usual, estimates.deepest),
        one_engine=dear,
        beside_s=lambda: estimates.beside_s,
    )
    shaper = Counted(TrafficShaper(limits, measured.prior, clock()))
    service = RankService(shaper, estimates.work, pipeline.rank, capacity, now_ms, clock)
    pipeline.refresh = Refreshing(service, settings.score_cache_ttl_s, now_ms).ask
    return service, pipeline


def measure(scorer: Scorer) -> Measured:
    """By a short and a long call. Raises what the scorer raises."""
    (few_s, few, fixed, _), (many_s, many, _, item) = (_call(scorer, size) for size in SIZES)
    token_s = (many_s - few_s) / max(many - few, 1.0)
    if token_s <= 0:  # the clock saw no difference
        token_s = many_s / many
    return Measured(Prior(max(0.0, few_s - token_s * few), token_s), fixed, item)


def _call(scorer: Scorer, size: int) -> tuple[float, float, float, float]:
    """Seconds, tokens altogether, of the query's side, of an item."""
    query, items = known_pairs(size)
    fastest_s = float("inf")
    for _ in range(REPEATS):
        began = time.perf_counter()
        scores = scorer.score(query, items)
        fastest_s = min(fastest_s, time.perf_counter() - began)
    fixed, of_items = scores.tokens or (0, size)
    return max(fastest_s, 1e-9), float(fixed + of_items), float(fixed), of_items / size
