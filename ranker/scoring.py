"""Scores for a block of candidates: the fused score for all, the language model's for the best of them, both cached.

How the two make one order. The language model scores the best by fused score, as many as the shaper gives. Their
final p has as log-odds the mean of both log-odds (both judges count equally until a trained combination says
otherwise). The others keep their fused score, scaled down by one factor for all where the best of them would otherwise
pass the worst that the language model saw: it judged those to be compared, and the rest was already below them by the
same cheap score. So the order is by score everywhere, and within each part it is that part's own.

When the language model fails, is full or is late, everything keeps its fused score, and the answer says why. Only
of one that is late such an answer tells how long it takes.

Where it stands: life-of-a-query.md, step 7.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from prometheus_client import Histogram

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.backends.scorer import LanguageModel, Scorer, ScoringItem, ScoringQuery
from penstock.ranker.cache import Cached, Computed, PairVersion, ScoreCache
from penstock.ranker.errors import CallerLeft, DeadlinePassed, RankerError
from penstock.ranker.policy import order
from penstock.ranker.records import Records
from penstock.ranker.stages import Stages
from penstock.schemas.events import IndexUpdate
from penstock.schemas.rpc import Hit

LM_ITEMS = Histogram(
    "penstock_lm_items", "Items of a request that the language model scored", buckets=(0, 1, 2, 4, 8, 16, 32, 64, 128)
)

SHARE = 0.8  # of the time that is left, that the language model may take; the rest is for the reply

_CLIP = 1e-9  # keeps log-odds finite
_TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True)
class Scorers:
    """The cheap one for the whole block, and the dear one for the best of it where there is one."""

    fused: Scorer
    language_model: LanguageModel | None = None
    ceiling: int = 64  # candidates that the language model scores, at most

    @property
    def dearest(self) -> Scorer:
        """The one that depth and cost are counted by."""
        return self.fused if self.language_model is None else self.language_model

    @property
    def model_id(self) -> str:
        if self.language_model is None:
            return self.fused.model_id
        return f"{self.fused.model_id}+{self.language_model.model_id}"


@dataclass(frozen=True, slots=True)
class Scored:
    """One entry a candidate, in the order of the hits given. p is NaN for a posting that is gone."""

    p: NDArray[np.float64]  # [n]
    parts: list[dict[str, float]]  # [n]
    lm_asked: int  # how many of the best the language model was asked for; 0 where it gave none
    lm_scored: int  # of those, that are still there
    cache_hits: int
    fused: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # p by the fused scorer alone
    asked: int = 0  # pairs that the dearest scorer was asked for
    hits: int = 0  # of those, that were cached
    tokens: tuple[float, float] | None = None  # of the query's side and of a candidate; None: nothing was computed
    stale: tuple[str, ...] = ()  # postings whose score is of an older revision
    away: bool = False  # the dearest scorer gave none although there was time: how long it takes is not told


def score(
    scorers: Scorers,
    cache: ScoreCache,
    query: ScoringQuery,
    tenant: str,
    hits: Sequence[Hit],
    records: Records,
    stages: Stages,
    *,
    interactive: bool = True,
    depth: int | None = None,
    goes_on: bool = False,
    may_be_stale: bool = False,
) -> Scored:
    """`depth`: how many the language model scores; None: as many as it may. `goes_on`: as on the page before.
    `may_be_stale`: the language model's scores of an older revision of the same version will do. The fused scores are
    never stale: they are cheap, and what a revision changes is what they are made of.

    Raises NonFiniteScore, CallError and what else the fused scorer raises, CallerLeft and DeadlinePassed.
    """
    ask = _Ask(cache, query, tenant, hits, records, stages, interactive)
    everything = list(range(len(hits)))
    cheap, tokens = ask.rows(scorers.fused, everything, "score", stages.remaining_s)
    fused = cheap.rows[:, 0]
    p = fused.copy()
    names = scorers.fused.part_names
    parts = [dict(zip(names, row, strict=True)) for row in cheap.rows[:, 1:].tolist()]
    model = scorers.language_model
    if model is None:
        return Scored(p, parts, 0, 0, cheap.hits, fused, len(hits), cheap.hits, tokens)
    live = [at for at in everything if not np.isnan(p[at])]
    ranked = [live[place] for place in order(p[live], [hits[at].posting_id for at in live])]
    top = ranked[: scorers.ceiling if depth is None else depth]
    dear, tokens, away = _best(model, ask, top, goes_on=goes_on, may_be_stale=may_be_stale)
    if dear is None:
        return Scored(p, parts, 0, 0, cheap.hits, fused, away=away)
    asked = len(top)
    stale = tuple(hits[top[place]].posting_id for place, _ in dear.stale)
    seen = ~np.isnan(dear.rows[:, 0])
    rest = ranked[asked:]
    p[[at for at, ok in zip(top, seen, strict=True) if not ok]] = np.nan  # deleted between the two
    top = [at for at, ok in zip(top, seen, strict=True) if ok]
    for at, row in zip(top, dear.rows[seen].tolist(), strict=True):
        parts[at]["fused"] = float(p[at])
        parts[at].update(zip(("yes_no", *model.part_names), row, strict=True))
    p[top] = combine(p[top], dear.rows[seen, 0])
    p[rest] = below(p[rest], p[top])
    return Scored(p, parts, asked, len(top), cheap.hits + dear.hits, fused, asked, dear.hits, tokens, stale)


def _best(
    model: LanguageModel, ask: _Ask, top: list[int], *, goes_on: bool, may_be_stale: bool
) -> tuple[Cached | None, tuple[float, float] | None, bool]:
    """The language model's rows, and what they took in tokens; no rows where it gave none, and the answer says why.
    And whether it gave none although there was time.

    Raises CallerLeft, and DeadlinePassed when it is the request's own deadline that passed.
    """
    stages = ask.stages
    try:
        within_s = min(SHARE * stages.remaining_s, model.longest_s)
        rows, tokens = ask.rows(model, top, "lm", within_s, may_be_stale=may_be_stale)
    except CallerLeft:
        raise
    except (RankerError, TimeoutError) as error:
        if stages.is_late:
            raise
        DEGRADED.labels("ranker", "language model").inc()
        stages.degrade(f"language model: {error or 'an identical request took too long'}; fused scores alone")
        if goes_on and top:
            stages.degrade(
                "page: ordered without the language model, unlike the one before: postings may repeat or lack"
            )
        return None, None, not isinstance(error, DeadlinePassed)
    LM_ITEMS.observe(len(top))
    revisions = Tally(revision for _, revision in rows.stale)
    stages.degrade(
        *(
            f"stale score of revision {revision} ({count} of {len(top)})"
            for revision, count in sorted(revisions.items())
        )
    )
    return rows, tokens, False


def combine(fused: NDArray[np.float64], yes_no: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability whose log-odds are the mean of both; [n] each."""
    a, b = (np.clip(p, _CLIP, 1 - _CLIP) for p in (fused, yes_no))
    odds = np.sqrt(a / (1 - a) * b / (1 - b))
    combined: NDArray[np.float64] = odds / (1 + odds)
    return combined


def below(rest: NDArray[np.float64], top: NDArray[np.float64]) -> NDArray[np.float64]:
    """`rest` scaled by one factor so that all are below the smallest of `top`; as it is when they already are.

    Equal to it only where that is 0.
    """
    if not rest.size or not top.size or rest.max() < top.min():
        return rest
    least = top.min()
    scaled: NDArray[np.float64] = np.minimum(rest * (least / max(rest.max(), _TINY)), np.nextafter(least, 0.0))
    return scaled


def _item(hit: Hit, update: IndexUpdate) -> ScoringItem:
    """Only a row or a query without a dense plane makes a dense product of exactly 0."""
    return ScoringItem(hit.dense, hit.lexical, update, has_dense=hit.dense != 0.0)


@dataclass(frozen=True, slots=True)
class _Ask:
    """One request's way to scores, by cache and scorer."""

    cache: ScoreCache
    query: ScoringQuery
    tenant: str
    hits: Sequence[Hit]
    records: Records
    stages: Stages
    interactive: bool

    def rows(
        self, scorer: Scorer, positions: list[int], stage: str, within_s: float, *, may_be_stale: bool = False
    ) -> tuple[Cached, tuple[float, float] | None]:
        """Rows of p and parts for `positions`, within `within_s` seconds; NaN where the posting is gone.

        And what was computed, in tokens: of the query's side, and of an item on the mean; None where nothing was.
        """
        stages, hits = self.stages, self.hits
        width = 1 + len(scorer.part_names)
        pairs = [PairVersion(self.tenant, hits[at].posting_id, hits[at].version, hits[at].revision) for at in positions]
        caller = stages.caller(self.interactive, within_s)
        tokens: tuple[float, float] | None = None

        def compute(missing: list[int]) -> Computed:
            nonlocal tokens
            at = [positions[place] for place in missing]
            with stages.stage("features"):
                updates = self.records.get(at)
            rows = np.full((len(at), width), np.nan)
            live = [place for place, update in enumerate(updates) if update is not None]
            items = [_item(hits[at[place]], update) for place, update in enumerate(updates) if update is not None]
            with stages.stage(stage):
                if items:
                    scores = scorer.score(self.query, items, caller)
                    stages.degrade(*scores.notes)
                    stages.inside(stage, scores.timings)
                    rows[live, 0], rows[live, 1:] = scores.p, scores.parts
                    prefix, all_items = scores.tokens or (0, len(items))
                    tokens = float(prefix), all_items / len(items)
            keep = np.array([self.records.is_exact(one) for one in at])
            return Computed(rows, keep)

        query = self.query.identity()
        with stages.stage("cache"):
            found = self.cache.rows(
                scorer.model_id, width, query, pairs, compute, within_s, self.interactive, may_be_stale
            )
        stages.degrade(*found.degraded, *self.records.degraded)
        return found, tokens
