"""Rankings a thousand deep for each query, as JSON Lines: what an evaluation reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from penstock.infra.demo.sample import Query
from penstock.ranker.client import RankerClient
from penstock.retrieval.client import ModelsClient
from penstock.schemas.events import Page, QueryVector, RankQuery, RankRequest, RankResult
from penstock.schemas.rpc import AnalyzeQueriesRequest

DEPTH = 1_000
DEADLINE_MS = 60_000
TOGETHER = 2  # queries in flight: the ranker's own workers are the limit


class RankingFailed(Exception):
    """The ranker gave no ranking for a query."""


def ask(
    ranker: RankerClient,
    query: Query,
    *,
    request_id: str,
    size: int,
    now_ms: int,
    depth: int | None = None,
    vector: QueryVector | None = None,
) -> RankResult:
    """One query over gRPC; with a `vector` nothing is read from its words.

    Raises RankingFailed when the result is an error, CallError when there is none.
    """
    request = RankRequest(
        request_id=request_id,
        tenant=query.event.tenant,
        class_=query.event.class_,
        deadline=now_ms + DEADLINE_MS,
        query=RankQuery(
            text=query.event.text, filters=query.event.filters, vector=vector, person_id=query.event.person_id
        ),
        depth=depth,
        min_version=query.event.min_version,
        trace=query.event.trace,
        page=Page(size=size),
        produced_at=now_ms,
    )
    result = ranker.rank(request, timeout=DEADLINE_MS / 1000)
    if result.error is not None:
        raise RankingFailed(f"query {query.query_id!r}: {result.error}")
    return result


def write_rankings(
    path: Path,
    ranker: RankerClient,
    models: ModelsClient,
    queries: Sequence[Query],
    *,
    run_id: str,
    clock: Callable[[], int],
) -> dict[str, int]:
    """One line a query: query_id, items [{posting_id, score}], best first; returns each list's length by query id.

    Where fewer than DEPTH postings pass what was understood from the words, those that do not follow behind, their
    scores scaled below the last. A list is shorter than DEPTH only when the caller's own filters leave fewer.
    """

    def rank(query: Query) -> list[tuple[str, float]]:
        request_id = f"{run_id}-rank-{query.query_id}"
        result = ask(ranker, query, request_id=request_id, size=DEPTH, depth=DEPTH, now_ms=clock())
        items = [(item.posting_id, item.score) for item in result.items]
        if len(items) < DEPTH and result.understood:
            (analysis,) = models.analyze(AnalyzeQueriesRequest(texts=(query.event.text,)), DEADLINE_MS / 1000).analyses
            whole = ask(
                ranker,
                query,
                request_id=f"{request_id}-all",
                size=DEPTH,
                depth=DEPTH,
                now_ms=clock(),
                vector=analysis.vector,
            )
            last, there = (items[-1][1] if items else 1.0), {posting_id for posting_id, _ in items}
            items += [(item.posting_id, last * item.score) for item in whole.items if item.posting_id not in there]
        return items[:DEPTH]

    lengths = {}
    with ThreadPoolExecutor(TOGETHER) as pool, path.open("w", encoding="utf-8") as out:
        for query, items in zip(queries, pool.map(rank, queries), strict=True):
            lengths[query.query_id] = len(items)
            ranked = [{"posting_id": posting_id, "score": score} for posting_id, score in items]
            out.write(json.dumps({"query_id": query.query_id, "items": ranked}, ensure_ascii=False) + "\n")
    return lengths


def too_short(queries: Sequence[Query], lengths: Mapping[str, int], live: Mapping[str, int]) -> list[str]:
    """A sentence for every ranking with fewer than min(DEPTH, the tenant's live postings); `live` is by tenant."""
    out = []
    for query in queries:
        wanted, got = min(DEPTH, live.get(query.event.tenant, 0)), lengths[query.query_id]
        if got < wanted:
            why = "its own filters leave no more" if query.event.filters is not None else "the ranker gave no more"
            out.append(f"query {query.query_id!r}: {got} postings ranked instead of {wanted}: {why}")
    return out
