"""Scores for a block of candidates: the fused score for all, the language model's for the best of them, both cached.

How the two make one order. The language model scores the `lm_items` best by fused score. Their final p has as log-odds
the mean of both log-odds (both judges count equally until a trained combination says otherwise). The others keep their
fused score, scaled down by one factor for all where the best of them would otherwise pass the worst that the language
model saw: it judged those to be compared, and the rest was already below them by the same cheap score. So the order is
by score everywhere, and within each part it is that part's own.

Where it stands: life-of-a-query.md, step 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penstock.ranker.backends.scorer import Scorer, ScoringItem, ScoringQuery
from penstock.ranker.cache import Cached, Computed, PairVersion, ScoreCache
from penstock.ranker.policy import order
from penstock.ranker.records import Records
from penstock.ranker.stages import Stages
from penstock.schemas.events import IndexUpdate
from penstock.schemas.rpc import Hit

_CLIP = 1e-9  # keeps log-odds finite


@dataclass(frozen=True, slots=True)
class Scorers:
    """The cheap one for the whole depth, and the dear one for the top where there is one."""

    fused: Scorer
    language_model: Scorer | None = None
    lm_items: int = 0

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
    lm_scored: int
    cache_hits: int


def score(
    scorers: Scorers,
    cache: ScoreCache,
    query: ScoringQuery,
    tenant: str,
    hits: Sequence[Hit],
    records: Records,
    stages: Stages,
) -> Scored:
    """Raises NonFiniteScore, CallError and what else a scorer raises; nothing that is not a probability is returned."""
    everything = list(range(len(hits)))
    cheap = _cached(scorers.fused, cache, query, tenant, hits, everything, records, stages)
    p = cheap.rows[:, 0].copy()
    names = scorers.fused.part_names
    parts = [dict(zip(names, row, strict=True)) for row in cheap.rows[:, 1:].tolist()]
    model = scorers.language_model
    if model is None:
        return Scored(p, parts, 0, cheap.hits)
    live = [at for at in everything if not np.isnan(p[at])]
    ranked = [live[place] for place in order(p[live], [hits[at].posting_id for at in live])]
    top = ranked[: scorers.lm_items]
    dear = _cached(model, cache, query, tenant, hits, top, records, stages)
    seen = ~np.isnan(dear.rows[:, 0])
    top = [at for at, ok in zip(top, seen, strict=True) if ok]
    for at, row in zip(top, dear.rows[seen].tolist(), strict=True):
        parts[at]["fused"] = float(p[at])
        parts[at].update(zip(("yes_no", *model.part_names), row, strict=True))
    rest = ranked[scorers.lm_items :]
    p[top] = combine(p[top], dear.rows[seen, 0])
    p[rest] = below(p[rest], p[top])
    gone = [at for at in ranked[: scorers.lm_items] if at not in set(top)]
    p[gone] = np.nan  # deleted between the two
    return Scored(p, parts, len(top), cheap.hits + dear.hits)


def combine(fused: NDArray[np.float64], yes_no: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability whose log-odds are the mean of both; [n] each."""
    a, b = (np.clip(p, _CLIP, 1 - _CLIP) for p in (fused, yes_no))
    odds = np.sqrt(a / (1 - a) * b / (1 - b))
    combined: NDArray[np.float64] = odds / (1 + odds)
    return combined


def below(rest: NDArray[np.float64], top: NDArray[np.float64]) -> NDArray[np.float64]:
    """`rest` scaled by one factor so that none is above the smallest of `top`; as it is when it already is not."""
    if not rest.size or not top.size or rest.max() <= top.min():
        return rest
    scaled: NDArray[np.float64] = np.minimum(rest * (top.min() / rest.max()), top.min())
    return scaled


def _item(hit: Hit, update: IndexUpdate) -> ScoringItem:
    """Only a row or a query without a dense plane makes a dense product of exactly 0."""
    return ScoringItem(hit.dense, hit.lexical, update, has_dense=hit.dense != 0.0)


def _cached(
    scorer: Scorer,
    cache: ScoreCache,
    query: ScoringQuery,
    tenant: str,
    hits: Sequence[Hit],
    positions: list[int],
    records: Records,
    stages: Stages,
) -> Cached:
    """Rows of p and parts for `positions`; NaN where the posting is gone."""
    width = 1 + len(scorer.part_names)
    pairs = [PairVersion(tenant, hits[at].posting_id, hits[at].version, hits[at].revision) for at in positions]

    def compute(missing: list[int]) -> Computed:
        at = [positions[place] for place in missing]
        with stages.stage("features"):
            updates = records.get(at)
        rows = np.full((len(at), width), np.nan)
        live = [place for place, update in enumerate(updates) if update is not None]
        items = [_item(hits[at[place]], update) for place, update in enumerate(updates) if update is not None]
        with stages.stage("score"):
            if items:
                scores = scorer.score(query, items)
                stages.degrade(*scores.notes)
                rows[live, 0], rows[live, 1:] = scores.p, scores.parts
        keep = np.array([records.is_exact(one) for one in at])
        return Computed(rows, keep)

    with stages.stage("cache"):
        found = cache.rows(scorer.model_id, width, query.identity(), pairs, compute, stages.remaining_s)
    stages.degrade(*found.degraded, *records.degraded)
    return found
