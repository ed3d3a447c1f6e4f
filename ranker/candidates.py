"""What a request ranks: retrieval's order for its query, or the postings that the request names.

Named candidates are scored by the same exact search, restricted to their ids: so the caller's filters hold for them
too, and their dense and lexical scores are the ones any search would give. Those without a vector are found by a second
search without one, and score 0. Who does not pass the filters, or is not live, is left out.

Where it stands: life-of-a-query.md, step 6.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import grpc

from penstock.infra.telemetry import DEGRADED
from penstock.ranker.policy import Window
from penstock.schemas import filters
from penstock.schemas.events import Filter, QueryVector, RankRequest
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import GetReply, GetRequest, Hit, HoldsReply, HoldsRequest, SearchReply, SearchRequest

MIN_VERSION_WAIT_MS = 1_000


class Retrieval(Protocol):
    """What the ranker asks of `penstock.retrieval.client.RetrievalClient`. Timeouts in seconds; raises CallError."""

    def search(self, request: SearchRequest, timeout: float) -> SearchReply: ...

    def get(self, request: GetRequest, timeout: float) -> GetReply: ...

    def holds(self, request: HoldsRequest, timeout: float) -> HoldsReply: ...


@dataclass(frozen=True, slots=True)
class Found:
    hits: tuple[Hit, ...]  # of this window's block, in retrieval's order
    total: int
    epoch: int
    epochs: str  # by shard, for people
    degraded: tuple[str, ...]


def find(
    retrieval: Retrieval,
    request: RankRequest,
    vector: QueryVector | None,
    words: str | None,
    tree: Filter | None,
    window: Window,
    *,
    shards: int,
    remaining_s: Callable[[], float],
) -> Found:
    """The block's candidates; `words` decide where there is no vector. Raises CallError."""
    named = list(dict.fromkeys(request.candidates)) if request.candidates is not None else None
    ask = SearchRequest(
        tenant=request.tenant,
        vector=vector,
        words=words if vector is None else None,
        filters=tree if named is None else filters.all_of(tree, filters.is_in("posting_id", *named)),
        k=window.stop,
        at_epoch=window.epoch if shards == 1 else None,
        min_version=request.min_version,
        timeout_ms=min(MIN_VERSION_WAIT_MS, int(remaining_s() * 500)),
    )
    reply, notes = _search(retrieval, ask, window, remaining_s)
    if named is None:
        hits, total = reply.hits[window.start : window.stop], reply.total
    else:
        hits = _exactly(retrieval, replace(ask, min_version=None), reply, set(named), remaining_s)
        scored = vector is not None or words is not None
        if scored and (rest := [name for name in named if name not in {hit.posting_id for hit in hits}]):
            bare = replace(
                ask,
                vector=None,
                words=None,
                min_version=None,
                filters=filters.all_of(tree, filters.is_in("posting_id", *rest)),
                k=len(rest),
                at_epoch=reply.epoch if shards == 1 else None,
            )
            more, more_notes = _search(retrieval, bare, replace(window, epoch=bare.at_epoch), remaining_s)
            notes += more_notes
            hits += _exactly(retrieval, bare, more, set(rest), remaining_s)
        total = len(hits)
    epochs = reply.shard if "@" in reply.shard else f"{reply.shard}@{reply.epoch}"
    return Found(hits, total, reply.epoch, epochs, (*reply.degraded, *notes))


def _search(
    retrieval: Retrieval, ask: SearchRequest, window: Window, remaining_s: Callable[[], float]
) -> tuple[SearchReply, tuple[str, ...]]:
    """The reply, at the window's epoch where that is still held; otherwise at the newest, and a note that says so."""
    try:
        reply = retrieval.search(ask, remaining_s())
    except CallError as error:
        if ask.at_epoch is None or error.code is not grpc.StatusCode.INVALID_ARGUMENT or "at_epoch" not in str(error):
            raise
        reply = retrieval.search(replace(ask, at_epoch=None), remaining_s())
    if window.epoch is None or reply.epoch == window.epoch:
        return reply, ()
    DEGRADED.labels("ranker", "page at another epoch").inc()
    return reply, (f"page: epoch {window.epoch} is not held any more, read {reply.epoch}: postings may repeat or lack",)


def _exactly(
    retrieval: Retrieval, ask: SearchRequest, reply: SearchReply, named: set[str], remaining_s: Callable[[], float]
) -> tuple[Hit, ...]:
    """The hits with exactly these ids: filters compare without case, so other postings may have taken places."""
    k = ask.k
    while len(reply.hits) == k and sum(hit.posting_id in named for hit in reply.hits) < min(len(named), reply.total):
        if k >= reply.total:
            break
        k = reply.total
        reply = retrieval.search(
            replace(ask, k=k, at_epoch=reply.epoch if ask.at_epoch is not None else None), remaining_s()
        )
    return tuple(hit for hit in reply.hits if hit.posting_id in named)
