"""`cache`: what the score cache finds and what it saves, over searches as people repeat them.

Queries are drawn from the judgement queries by Zipf's law, one tenant, 250 candidates a request, and the cache is empty
at the start. Meanwhile the index turns over: TURNOVER postings a request get a new version, which nobody has scored.

    hit_rate  pairs that were found over pairs that were asked (ScoreCache.hit_rate)
    p50_gain  the median time without a score cache over that with it, of the same requests

Without means without: no keys, no reads and no writes, every pair computed; all else is the same pipeline. A sample of
the requests goes to both, one after the other, who is first changing each time. Their answers must be equal.
The rows are of the fused score alone, the default; the same with the language model stands in the notes, of fewer
requests, where what it scores changes with its pace and answers are therefore not compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.ranking.drawing import zipf
from benchmarks.ranking.end_to_end import degraded, distribution
from benchmarks.ranking.surroundings import Surroundings, timed
from benchmarks.report import Report
from penstock.ranker.cache import Cached, Computed, PairVersion
from penstock.ranker.scoring import Scorers
from penstock.schemas.events import RankResult

REQUESTS = 20_000
LM_REQUESTS = 400
EXPONENT = 1.0
TURNOVER = 0.2  # postings with a new version, a request
RENEWED = 10  # at a time
SAMPLED = 400  # requests that also go to who has no cache
SAY_EVERY = 2_000  # requests
SAME = 1e-12

Pairs = Sequence[PairVersion]
Compute = Callable[[list[int]], Computed]


class NoCache:
    """In a ScoreCache's place, where there is none."""

    def rows(self, _id: str, width: int, _query: bytes, pairs: Pairs, compute: Compute, *_: object) -> Cached:
        rows = compute(list(range(len(pairs)))).rows if pairs else np.empty((0, width))
        return Cached(rows, 0, ())


def caching(report: Report, around: Surroundings, requests: int = REQUESTS) -> int:
    """Adds the rows; how many answers differed, or ranked less than was asked."""
    found, wrong = _run(around, "fused", around.fused, requests, SAMPLED, compared=True)
    lm_requests = min(LM_REQUESTS, requests)
    with_model, others = _run(around, "both", around.both, lm_requests, lm_requests // 4, compared=False)
    report.notes["cache"] = {"fused alone": found, "fused and engine": with_model}
    report.add("cache/hit_rate", found["hit_rate"], "share", 0.5, "higher")
    peers = {name: found[name] for name in ("without_p50_ms", "with_p50_ms")}
    report.add("cache/p50_gain", found["p50_gain"], "ratio", 1.1, "higher", peers)
    print(f"  with the language model, {lm_requests} requests: {with_model}")
    return wrong + others


def _run(
    around: Surroundings, name: str, scorers: Scorers, requests: int, sampled: int, *, compared: bool
) -> tuple[dict[str, Any], int]:
    cache = around.cache(f"cache-{name}")
    cached, plain = around.pipeline(scorers, cache), around.pipeline(scorers, NoCache())
    rng = np.random.default_rng(31)
    drawn = rng.choice(len(around.queries), requests, p=zipf(len(around.queries), EXPONENT)).tolist()
    every = max(1, requests // max(1, sampled))
    took: list[float] = []
    pairs: dict[str, list[float]] = {"with": [], "without": []}  # of the sample
    depths: list[int] = []
    renewed = fell_back = wrong = 0
    for number, query in enumerate(drawn):
        if number and number % SAY_EVERY == 0:
            print(f"  {number} requests, {sum(took) / 1e3:.0f} s, hit rate {cache.hit_rate:.3f}", flush=True)
        if number * TURNOVER >= renewed + RENEWED:
            around.renew(rng.choice(len(around.versions), RENEWED, replace=False).tolist())
            renewed += RENEWED
        asked = {"with": cached}
        if number % every == every - 1:
            asked = {"with": cached, "without": plain} if number // every % 2 else {"without": plain, "with": cached}
        answers: dict[str, RankResult] = {}
        for way, pipeline in asked.items():
            ms, answers[way] = timed(pipeline, around.job(query))
            if len(asked) > 1:
                pairs[way].append(ms)
            if way == "with":
                took.append(ms)
                depths.append(answers[way].lm_scored)
        wrong += any(answer.depth_served != around.settings.depth for answer in answers.values())
        fell_back += degraded(answers.values())
        if compared and len(answers) > 1:
            wrong += not same(answers["with"], answers["without"])
    with_ms, without_ms = (float(np.median(pairs[way])) for way in ("with", "without"))
    return {
        "requests": requests,
        "distinct_queries": len(set(drawn)),
        "hit_rate": cache.hit_rate,
        "p50_gain": without_ms / with_ms,
        "sampled": len(pairs["with"]),
        "with_p50_ms": with_ms,
        "without_p50_ms": without_ms,
        "all_p50_ms": float(np.median(took)),
        "all_p95_ms": float(np.percentile(took, 95)),
        "seconds": sum(took) / 1e3,
        "renewed_postings": renewed,
        "of_rows": len(around.versions),
        "lm_scored": distribution(depths),
        "degraded": fell_back,
    }, wrong


def same(one: RankResult, other: RankResult) -> bool:
    """The same postings of the same versions in the same order, their scores equal within SAME."""
    if [(item.posting_id, item.version) for item in one.items] != [
        (item.posting_id, item.version) for item in other.items
    ]:
        return False
    scores = np.array([[item.score for item in result.items] for result in (one, other)])
    return bool((np.abs(scores[0] - scores[1]) <= SAME).all())
