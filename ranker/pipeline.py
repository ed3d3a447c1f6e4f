"""The way of one request through the ranker, step by step; each step's time is in the result.

queue      waited for its turn (measured by the desk), which says how deep
analyze    the text's vector and what it says, where the request does not bring them; what of that is strict;
           while the models role is away, the words alone
retrieve   the block of candidates that the page lies in, exactly filtered
cache      scores already known of these posting versions
features   the postings behind the others
score      the others, by the fused score
lm         the best of them, by the language model where there is one; what it spent where, as lm_tokenise, lm_queue, …
reply      order, page, cursor

Where it stands: life-of-a-query.md, step 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from penstock.infra.telemetry import DEGRADED
from penstock.ranker import candidates, policy, scoring, strictness
from penstock.ranker.analyst import Analyst, Models
from penstock.ranker.backends.scorer import ScoringQuery
from penstock.ranker.cache import ScoreCache
from penstock.ranker.candidates import Found, Retrieval
from penstock.ranker.errors import ModelsAway
from penstock.ranker.estimates import Estimates, Seen
from penstock.ranker.feature_store import FeatureStore
from penstock.ranker.job import Job, Turn
from penstock.ranker.policy import DepthLimits, Window
from penstock.ranker.records import Records
from penstock.ranker.scoring import Scored, Scorers
from penstock.ranker.stages import Stages
from penstock.schemas.events import Filter, QueryVector, RankClass, RankedItem, RankRequest, RankResult, Understood
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import HoldsRequest

NEWEST_FIRST = "newest-first"  # the model id of a request that has neither words nor a vector


@dataclass(frozen=True, slots=True)
class _Query:
    vector: QueryVector | None
    words: str | None  # what retrieval goes by where there is no vector
    understood: tuple[Understood, ...]
    filters: Filter | None


class Pipeline:
    """Holds the clients and caches; keeps nothing of a request but what the next like it will cost. Safe to share
    between threads.

    `now_ms` gives epoch milliseconds, `clock` monotonic seconds.
    """

    def __init__(
        self,
        *,
        models: Models,
        retrieval: Retrieval,
        shards: int,
        store: FeatureStore,
        cache: ScoreCache,
        scorers: Scorers,
        limits: DepthLimits,
        estimates: Estimates,
        now_ms: Callable[[], int],
        clock: Callable[[], float],
    ) -> None:
        self._analyst = Analyst(models, clock)
        self._retrieval = retrieval
        self._shards = shards
        self._store = store
        self._cache = cache
        self._scorers = scorers
        self._limits = limits
        self._estimates = estimates
        self._now_ms = now_ms
        self._clock = clock
        self.refresh: Callable[[RankRequest, tuple[str, ...]], None] | None = None  # who hears of stale scores

    def check(self, request: RankRequest) -> None:
        """Raises InvalidRecord naming the field."""
        policy.check_request(request, self._limits)
        policy.decide_window(request, self._limits)

    def rank(self, job: Job, turn: Turn) -> RankResult:
        """Raises InvalidRecord, DeadlinePassed, CallerLeft or RankFailed naming the stage."""
        stages = Stages(turn.deadline_s, self._now_ms, self._clock, job.left.is_set, turn.waited_ms)
        try:
            result = self._rank(job, turn, stages)
        except Exception as error:
            stages.traced(job.request, error)
            raise
        trace = stages.traced(job.request)
        return replace(
            result,
            depth_reason=turn.reason.value,
            degraded=tuple(stages.degraded),
            timings=dict(stages.timings),
            trace=trace,
        )

    def _rank(self, job: Job, turn: Turn, stages: Stages) -> RankResult:
        request = job.request
        dear = self._scorers.language_model is not None  # then depth is its alone
        window = policy.decide_window(request, self._limits, None if dear else turn.depth)
        with stages.stage("analyze"):
            query = self._understand(request, stages)
        with stages.stage("retrieve"):
            found = candidates.find(
                self._retrieval,
                request,
                query.vector,
                query.words,
                query.filters,
                window,
                shards=self._shards,
                remaining_s=lambda: stages.remaining_s,
            )
            stages.degrade(*found.degraded)
        if query.vector is None and query.words is None:
            scored, model_id = _unscored(found), NEWEST_FIRST
        else:
            depth = turn.depth if window.lm_items is None else window.lm_items
            scored = self._score(request, query.vector, found, depth, window.lm_items is not None, turn, stages)
            model_id = self._scorers.model_id
            job.fell_back = scored.away
            self._learn(request, turn, found, window, scored, stages)
            if scored.stale and self.refresh is not None:
                self.refresh(request, scored.stale)
        with stages.stage("reply"):
            return self._reply(request, window, query, found, scored, model_id)

    def _understand(self, request: RankRequest, stages: Stages) -> _Query:
        vector, understood = request.query.vector, request.query.understood
        words = request.query.text if request.query.text.strip() else None
        if vector is None and words is not None:
            vector, understood = self._analyze(words, understood, stages)

        def holds(clauses: tuple[Filter, ...]) -> tuple[bool, ...]:
            try:
                ask = HoldsRequest(tenant=request.tenant, clauses=clauses)
                return self._retrieval.holds(ask, stages.remaining_s).held
            except CallError as error:  # without a yes nothing becomes strict
                DEGRADED.labels("ranker", "holds").inc()
                stages.degrade(f"understood: {error}; what needs values is not applied")
                return (False,) * len(clauses)

        decided = strictness.decide_strictness(understood, request.query.filters, holds)
        return _Query(vector, words, decided.understood, decided.filters)

    def _analyze(
        self, words: str, understood: tuple[Understood, ...], stages: Stages
    ) -> tuple[QueryVector | None, tuple[Understood, ...]]:
        """The words' vector, if the models role gives one in time, and what is understood of them."""
        try:
            analysis = self._analyst.ask(words, stages.remaining_s)
        except ModelsAway as error:
            DEGRADED.labels("ranker", "analyze").inc()
            stages.degrade(f"analyze: models away, words alone ({error})")
            return None, understood
        if analysis.vector is None:
            DEGRADED.labels("ranker", "not encoded").inc()
            stages.degrade("analyze: the words could not be encoded, words alone (the models role's log has the cause)")
        return analysis.vector, understood or analysis.understood

    def _score(
        self,
        request: RankRequest,
        vector: QueryVector | None,
        found: Found,
        depth: int | None,
        goes_on: bool,
        turn: Turn,
        stages: Stages,
    ) -> Scored:
        records = Records(self._store, self._retrieval, found.hits, lambda: stages.remaining_s)
        query = ScoringQuery(request.query.text, vector)
        return scoring.score(
            self._scorers,
            self._cache,
            query,
            request.tenant,
            found.hits,
            records,
            stages,
            interactive=request.class_ is RankClass.INTERACTIVE,
            depth=depth,
            goes_on=goes_on,
            may_be_stale=turn.may_be_stale,
        )

    def _learn(
        self, request: RankRequest, turn: Turn, found: Found, window: Window, scored: Scored, stages: Stages
    ) -> None:
        """What the next such request will cost, and what this one lost of its depth."""
        margins = np.sort(scored.fused[~np.isnan(scored.fused)])[::-1]
        hits = scored.hits / scored.asked if scored.asked else None
        self._estimates.served(request, Seen(found.total, margins, hits, scored.tokens, stages.beside("queue", "lm")))
        if self._scorers.language_model is None:
            had, most, by = len(found.hits), min(found.total, window.asked, self._limits.ceiling), ""
        else:
            most, by = min(len(margins), self._scorers.ceiling), " by the language model"
            had = most if turn.depth is None else turn.depth
        goes_on = request.page.cursor is not None or (request.candidates is not None and not by)
        if had < most and not goes_on:
            DEGRADED.labels("ranker", "depth").inc()
            stages.degrade(f"depth: {had} of {most} candidates{by} ({turn.reason.value})")

    def _reply(
        self, request: RankRequest, window: Window, query: _Query, found: Found, scored: Scored, model_id: str
    ) -> RankResult:
        live = [at for at in range(len(found.hits)) if not np.isnan(scored.p[at])]
        if model_id != NEWEST_FIRST:  # otherwise retrieval's order is the answer
            live = [live[place] for place in policy.order(scored.p[live], [found.hits[at].posting_id for at in live])]
        return RankResult(
            request_id=request.request_id,
            tenant=request.tenant,
            class_=request.class_,
            items=tuple(
                RankedItem(
                    posting_id=found.hits[at].posting_id,
                    version=found.hits[at].version,
                    revision=found.hits[at].revision,
                    score=float(scored.p[at]),
                    parts=scored.parts[at],
                )
                for at in live[window.first : window.last]
            ),
            total=found.total,
            depth_asked=window.asked,
            depth_served=len(live),
            lm_scored=scored.lm_scored,
            cache_hits=scored.cache_hits,
            model_id=model_id,
            epoch=found.epochs,
            understood=query.understood,
            next_cursor=policy.next_cursor(
                request,
                window,
                in_block=len(found.hits),
                lm_items=scored.lm_asked,
                epoch=found.epoch,
                limits=self._limits,
            ),
            timings={},
            echo=request.echo,
            trace=request.trace,
        )


def _unscored(found: Found) -> Scored:
    """Neither words nor a vector: nothing to compare with, so every posting scores 0 and the newest come first."""
    parts = [{"recency": float(hit.recency)} for hit in found.hits]
    return Scored(np.zeros(len(found.hits)), parts, 0, 0, 0)
