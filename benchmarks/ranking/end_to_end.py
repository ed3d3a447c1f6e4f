"""`e2e`: one search through the ranker's pipeline, 250 candidates, by one caller who asks again when answered.

The row is of the arrangement with a language model: the fused score over all, the engine over as many of the best as
the shaper starts with. The fused score alone, which is what ships as the default, is asked the same in turn. Every
query is asked once of each, and each has a score cache of its own, so nothing is answered from it: reading it and
writing to it are part of what is timed.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.ranking.surroundings import Surroundings, timed
from benchmarks.report import Report
from penstock.ranker.backends.load import on_a_gpu
from penstock.ranker.shaping.limits import depths_from
from penstock.schemas.events import RankResult

REQUESTS = 150
WARM_UP = 20  # requests
ENGINE, FUSED = "fused and engine", "fused alone"


def end_to_end(report: Report, around: Surroundings, requests: int = REQUESTS) -> int:
    """Adds the row; how many answers ranked less than was asked, or did not compute it."""
    depth = depths_from(around.settings.shaping, on_a_gpu=on_a_gpu(around.settings)).start
    arrangements = {
        ENGINE: around.pipeline(replace(around.both, ceiling=depth), around.cache("e2e-both")),
        FUSED: around.pipeline(around.fused, around.cache("e2e-fused")),
    }
    spread = np.linspace(0, len(around.queries) - 1, min(requests + WARM_UP, len(around.queries)), dtype=int)
    chosen = np.random.default_rng(21).permutation(spread).tolist()
    took: dict[str, list[float]] = {name: [] for name in arrangements}
    results: dict[str, list[RankResult]] = {name: [] for name in arrangements}
    for number, query in enumerate(chosen):
        for name in list(arrangements)[:: 1 if number % 2 else -1]:
            ms, result = timed(arrangements[name], around.job(query))
            if number >= WARM_UP:
                took[name].append(ms)
                results[name].append(result)
    told = {name: _told(took[name], results[name]) for name in arrangements}
    report.notes["e2e"] = {
        "rows": len(around.versions),
        "lm_depth": depth,
        "lm_scored": distribution([result.lm_scored for result in results[ENGINE]]),
        **told,
    }
    report.add("e2e/250/p50_ms", told[ENGINE]["p50_ms"], "ms", 300, "lower", {FUSED: told[FUSED]["p50_ms"]})
    print(f"  lm_scored {report.notes['e2e']['lm_scored']}, stages of {ENGINE}: {told[ENGINE]['stages_ms']}")
    return sum(
        result.depth_served != around.settings.depth or result.cache_hits > 0
        for name in arrangements
        for result in results[name]
    )


def distribution(counts: Sequence[int]) -> dict[str, float]:
    return {"median": statistics.median(counts), "least": min(counts), "most": max(counts)}


def _told(took: Sequence[float], results: Sequence[RankResult]) -> dict[str, Any]:
    return {
        "requests": len(took),
        "p50_ms": float(np.percentile(took, 50)),
        "p95_ms": float(np.percentile(took, 95)),
        "stages_ms": means([result.timings for result in results]),
        "degraded": degraded(results),
    }


def degraded(results: Iterable[RankResult]) -> int:
    """How many answers are not all that was asked for: they say so."""
    return sum(bool(result.degraded) for result in results)


def means(timings: Sequence[Any]) -> dict[str, float]:
    """Of each stage over all requests, those counted with 0 that did without it."""
    stages = dict.fromkeys(stage for one in timings for stage in one)
    return {stage: round(sum(one.get(stage, 0.0) for one in timings) / len(timings), 3) for stage in stages}
