"""Calling the models role and the retrieval shards. No torch: Flink workers import this.

A retrieval call goes to every shard at once and comes back as one reply in one total order. A shard that does not
answer is named in `degraded` and counted; only when none answers is there an error. A client owns its channels and
nothing else: share one between threads, close it when done.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent import futures
from dataclasses import replace
from typing import Any, Protocol

import grpc

from penstock.infra.telemetry import DEGRADED
from penstock.retrieval.search.order import merge
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Match, StandingQuery
from penstock.schemas.grpc_avro import AsyncClient, CallError, Client
from penstock.schemas.rpc import (
    AnalyzeQueriesReply,
    AnalyzeQueriesRequest,
    ClauseEffect,
    EnrichPostingsReply,
    EnrichPostingsRequest,
    ExplainReply,
    ExplainRequest,
    GetReply,
    GetRequest,
    HoldsReply,
    HoldsRequest,
    Matches,
    Method,
    Models,
    PercolateReply,
    PercolateRequest,
    Retrieval,
    RoleStatus,
    Row,
    RowState,
    SearchReply,
    SearchRequest,
    StandingReply,
    StandingRequest,
    StatusRequest,
)

MIN_VERSION_TIMED_OUT = "min_version timed out"
NO_SHARDS = "no shard addresses: give at least one host:port (retrieval.shards or retrieval.listen)"


class ModelsClient:
    """The models role: `timeout` in seconds, CallError when it does not answer in time."""

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def enrich(self, request: EnrichPostingsRequest, timeout: float) -> EnrichPostingsReply:
        """Vectors and summaries, one a posting, in order."""
        reply: EnrichPostingsReply = self._client.call(Models.ENRICH, request, timeout)
        return reply

    def analyze(self, request: AnalyzeQueriesRequest, timeout: float) -> AnalyzeQueriesReply:
        """Query vectors and what was understood, one a text, in order."""
        reply: AnalyzeQueriesReply = self._client.call(Models.ANALYZE, request, timeout)
        return reply

    def status(self, timeout: float) -> RoleStatus:
        reply: RoleStatus = self._client.call(Models.STATUS, StatusRequest(), timeout)
        return reply

    def close(self) -> None:
        self._client.close()


class AsyncModelsClient:
    """The same with coroutines. Make it on the event loop that will use it."""

    def __init__(self, address: str) -> None:
        self._client = AsyncClient(address)

    async def enrich(self, request: EnrichPostingsRequest, timeout: float) -> EnrichPostingsReply:
        """Vectors and summaries, one a posting, in order."""
        reply: EnrichPostingsReply = await self._client.call(Models.ENRICH, request, timeout)
        return reply

    async def analyze(self, request: AnalyzeQueriesRequest, timeout: float) -> AnalyzeQueriesReply:
        """Query vectors and what was understood, one a text, in order."""
        reply: AnalyzeQueriesReply = await self._client.call(Models.ANALYZE, request, timeout)
        return reply

    async def status(self, timeout: float) -> RoleStatus:
        reply: RoleStatus = await self._client.call(Models.STATUS, StatusRequest(), timeout)
        return reply

    async def close(self) -> None:
        await self._client.close()


class Addresses(Protocol):
    """The part of `settings.retrieval` that says where shards listen."""

    @property
    def listen(self) -> str: ...

    @property
    def shards(self) -> tuple[str, ...]: ...


def shard_addresses(settings: Addresses) -> tuple[str, ...]:
    """The shards' addresses: `shards`, or `listen` alone where there is one shard."""
    return settings.shards or (settings.listen,)


class RetrievalClient:
    """All shards as one: `timeout` in seconds, CallError when no shard answers or the request itself is wrong."""

    def __init__(self, shards: Sequence[str]) -> None:
        if not shards:
            raise ValueError(NO_SHARDS)
        self._clients = [Client(address) for address in shards]

    def search(self, request: SearchRequest, timeout: float) -> SearchReply:
        """The best `k` over all shards, merged exactly; `total` is their sum.

        With several shards `epoch` is the oldest one read and `shard` lists `name@epoch` of each. A read at an epoch
        is then refused, since each shard counts its own.
        """
        if len(self._clients) == 1:
            reply: SearchReply = self._clients[0].call(Retrieval.SEARCH, request, timeout)
            return reply
        if request.at_epoch is not None:
            raise InvalidRecord("at_epoch", request.at_epoch, "none with several shards: each counts its own epochs")
        give_up = time.monotonic() + timeout
        late: tuple[str, ...] = ()
        if request.min_version is not None:
            # Only one shard owns the posting, and which is the partitioner's affair: ask all, then read anywhere.
            probe = GetRequest(
                posting_ids=(request.min_version.posting_id,),
                min_version=request.min_version,
                timeout_ms=request.timeout_ms,
            )
            late = self._await_version(probe, timeout)[1]
            request = replace(request, min_version=None)
        replies, missing = self._gather(Retrieval.SEARCH, request, max(give_up - time.monotonic(), 0.001))
        return SearchReply(
            hits=merge(
                (hit for r in replies for hit in r.hits),
                request.k,
                by_recency=request.vector is None and request.words is None,
            ),
            total=sum(r.total for r in replies),
            epoch=min(r.epoch for r in replies),
            shard=",".join(f"{r.shard}@{r.epoch}" for r in replies),
            degraded=_union((r.degraded for r in replies), late + missing),
        )

    def get(self, request: GetRequest, timeout: float) -> GetReply:
        """One row an id, in order; ABSENT where no shard that answered has it (`degraded` names those that did not)."""
        if len(self._clients) == 1:
            reply: GetReply = self._clients[0].call(Retrieval.GET, request, timeout)
            return reply
        if request.min_version is not None and request.posting_ids == (request.min_version.posting_id,):
            return self._merged_rows(request, *self._await_version(request, timeout))
        give_up = time.monotonic() + timeout
        late: tuple[str, ...] = ()
        if request.min_version is not None:
            probe = replace(request, posting_ids=(request.min_version.posting_id,))
            late = self._await_version(probe, timeout)[1]
            request = replace(request, min_version=None)
        replies, missing = self._gather(Retrieval.GET, request, max(give_up - time.monotonic(), 0.001))
        return self._merged_rows(request, replies, late + missing)

    def holds(self, request: HoldsRequest, timeout: float) -> HoldsReply:
        """Whether some live posting has a clause's value, for each clause. A "no" needs every shard's word."""
        replies, missing = self._gather(Retrieval.HOLDS, request, timeout)
        held = tuple(any(answers) for answers in zip(*(r.held for r in replies), strict=True))
        if missing and not all(held):
            raise CallError(
                Retrieval.HOLDS,
                self._clients[0].address,
                grpc.StatusCode.UNAVAILABLE,
                f"a value may be held by a shard that did not answer: {'; '.join(missing)}",
            )
        return HoldsReply(held=held)

    def explain(self, request: ExplainRequest, timeout: float) -> ExplainReply:
        """What the filter and each of its clauses do, summed over the shards that answer."""
        replies, missing = self._gather(Retrieval.EXPLAIN, request, timeout)
        return ExplainReply(
            filter=replies[0].filter,
            postings=sum(r.postings for r in replies),
            passed=sum(r.passed for r in replies),
            clauses=tuple(
                ClauseEffect(
                    clause=same[0].clause, passed=sum(c.passed for c in same), missing=sum(c.missing for c in same)
                )
                for same in zip(*(r.clauses for r in replies), strict=True)
            ),
            shard=",".join(r.shard for r in replies),
            degraded=_union((r.degraded for r in replies), missing),
        )

    def status(self, timeout: float) -> list[RoleStatus]:
        """One a shard, in the order given; a shard that does not answer is not ready, with the reason."""
        waiting = [client.start(Retrieval.STATUS, StatusRequest(), timeout) for client in self._clients]
        out = []
        for client, future in zip(self._clients, waiting, strict=True):
            try:
                out.append(future.result())
            except grpc.RpcError as error:
                reason = str(CallError(Retrieval.STATUS, client.address, error.code(), error.details() or ""))
                out.append(RoleStatus(role="retrieval", ready=False, reason=reason, numbers={}, texts={}))
        return out

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def percolate(self, request: PercolateRequest, timeout: float) -> PercolateReply:
        """What each posting matches, over all shards. Every shard must answer: a missing one would lose alerts."""
        give_up = time.monotonic() + timeout
        found: list[list[PercolateReply]] = [[] for _ in self._clients]
        while open_ := _unanswered(found, len(request.updates)):
            left = max(give_up - time.monotonic(), 0.001)
            waiting = [
                self._clients[shard].start(Retrieval.PERCOLATE, replace(request, updates=request.updates[begin:]), left)
                for shard, begin in open_
            ]
            for (shard, _), future in zip(open_, waiting, strict=True):
                found[shard].append(self._answer(Retrieval.PERCOLATE, shard, future))
        return _percolated(found)

    def standing(self, request: StandingRequest, timeout: float) -> StandingReply:
        """Which version of each subscription is percolated. Every shard must answer: a subscription lives in one."""
        waiting = [client.start(Retrieval.STANDING, request, timeout) for client in self._clients]
        return _standing([self._answer(Retrieval.STANDING, shard, call) for shard, call in enumerate(waiting)])

    def _answer(self, method: Method, shard: int, call: Any) -> Any:
        """The reply of a call under way. Raises CallError."""
        try:
            return call.result()
        except grpc.RpcError as error:
            raise CallError(method, self._clients[shard].address, error.code(), error.details() or "") from error

    def _gather(self, method: Method, request: Any, timeout: float) -> tuple[list[Any], tuple[str, ...]]:
        """(replies, the shards that did not answer). Raises CallError when none did, or one says the call is wrong."""
        waiting = [client.start(method, request, timeout) for client in self._clients]
        replies: list[Any] = []
        failed: list[CallError] = []
        for client, future in zip(self._clients, waiting, strict=True):
            try:
                replies.append(future.result())
            except grpc.RpcError as error:
                failed.append(CallError(method, client.address, error.code(), error.details() or ""))
        for failure in failed:
            if not failure.retryable or not replies:
                raise failure
        if failed:
            DEGRADED.labels("retrieval-client", "shard missing").inc(len(failed))
        return replies, tuple(f"shard missing: {failure}" for failure in failed)

    def _await_version(self, probe: GetRequest, timeout: float) -> tuple[list[GetReply], tuple[str, ...]]:
        """The first reply that has the version asked for, alone; else every reply, and that it timed out."""
        waiting: dict[Any, Client] = {client.start(Retrieval.GET, probe, timeout): client for client in self._clients}
        first_error: CallError | None = None
        replies: list[GetReply] = []
        missing: list[str] = []
        for future in futures.as_completed(_bridged(waiting)):
            call, client = future.result()
            try:
                reply: GetReply = call.result()
            except grpc.RpcError as error:
                first_error = CallError(Retrieval.GET, client.address, error.code(), error.details() or "")
                missing.append(f"shard missing: {first_error}")
                continue
            if MIN_VERSION_TIMED_OUT not in reply.degraded:
                for other in waiting:
                    other.cancel()
                return [reply], ()
            replies.append(reply)
        if not replies and first_error is not None:
            raise first_error
        DEGRADED.labels("retrieval-client", MIN_VERSION_TIMED_OUT).inc()
        return replies, (MIN_VERSION_TIMED_OUT, *missing)

    @staticmethod
    def _merged_rows(request: GetRequest, replies: list[GetReply], degraded: tuple[str, ...]) -> GetReply:
        best = [Row(posting_id=posting_id, state=RowState.ABSENT) for posting_id in request.posting_ids]
        for reply in replies:
            best = [max(pair, key=_age) for pair in zip(best, reply.rows, strict=True)]
        return GetReply(
            rows=tuple(best),
            shard=",".join(reply.shard for reply in replies),
            degraded=_union((reply.degraded for reply in replies), degraded),
        )


class AsyncRetrievalClient:
    """The alerts job's side of all shards, with coroutines. Make it on the event loop that will use it."""

    def __init__(self, shards: Sequence[str]) -> None:
        if not shards:
            raise ValueError(NO_SHARDS)
        self._clients = [AsyncClient(address) for address in shards]

    async def percolate(self, request: PercolateRequest, timeout: float) -> PercolateReply:
        """As RetrievalClient.percolate: every shard must answer, else CallError."""
        give_up = time.monotonic() + timeout
        found: list[list[PercolateReply]] = [[] for _ in self._clients]
        while open_ := _unanswered(found, len(request.updates)):
            left = max(give_up - time.monotonic(), 0.001)
            calls = [
                self._clients[shard].call(Retrieval.PERCOLATE, replace(request, updates=request.updates[begin:]), left)
                for shard, begin in open_
            ]
            for (shard, _), reply in zip(open_, await asyncio.gather(*calls), strict=True):
                found[shard].append(reply)
        return _percolated(found)

    async def standing(self, request: StandingRequest, timeout: float) -> StandingReply:
        """As RetrievalClient.standing."""
        return _standing(
            await asyncio.gather(*(client.call(Retrieval.STANDING, request, timeout) for client in self._clients))
        )

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def _unanswered(found: list[list[PercolateReply]], updates: int) -> list[tuple[int, int]]:
    """(shard, first update it has not answered yet): a shard answers as many as fit a reply, and at least one."""
    reached = [sum(len(reply.found) for reply in replies) for replies in found]
    return [(shard, n) for shard, n in enumerate(reached) if n < updates or not found[shard]]


def _percolated(found: list[list[PercolateReply]]) -> PercolateReply:
    """All shards' answers as one, matches by subscription_id. A subscription that two shards know counts once."""
    by_shard = [[one for reply in replies for one in reply.found] for replies in found]
    replies = [reply for answered in found for reply in answered]
    return PercolateReply(
        found=tuple(_united(of_one) for of_one in zip(*by_shard, strict=True)),
        shard=",".join(f"{answered[-1].shard}@{answered[-1].epoch}" for answered in found),
        epoch=min(reply.epoch for reply in replies),
        degraded=_union((reply.degraded for reply in replies), ()),
    )


def _united(parts: Sequence[Matches]) -> Matches:
    if len(parts) == 1:
        return parts[0]
    matches: dict[str, Match] = {}
    queries: dict[str, StandingQuery] = {}
    for match in sorted((m for part in parts for m in part.matches), key=lambda match: match.version):
        matches[match.subscription_id] = match
    for query in sorted((q for part in parts for q in part.queries), key=lambda query: query.version):
        queries[query.subscription_id] = query
    ordered = tuple(matches[one] for one in sorted(matches))
    asked = [queries.get(match.subscription_id) for match in ordered]
    both = zip(asked, ordered, strict=True)
    return Matches(
        matches=ordered,
        queries=tuple(query for query, match in both if query is not None and query.version == match.version),
    )


def _standing(replies: Sequence[StandingReply]) -> StandingReply:
    """Of each id the newest version that any shard has heard of."""
    pairs = [max(of_one) for of_one in zip(*(zip(r.versions, r.in_force, strict=True) for r in replies), strict=True)]
    return StandingReply(
        versions=tuple(version for version, _ in pairs),
        in_force=tuple(in_force for _, in_force in pairs),
        shard=",".join(reply.shard for reply in replies),
    )


def _age(row: Row) -> tuple[int, int]:
    return (-1, -1) if row.update is None else (row.update.version, row.update.revision)


def _union(groups: Any, more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys([*(name for group in groups for name in group), *more]))


def _bridged(calls: dict[Any, Client]) -> list[futures.Future[tuple[Any, Client]]]:
    """grpc's calls as concurrent futures that resolve, once the call is done, to (call, client)."""
    out = []
    for call, client in calls.items():
        bridge: futures.Future[tuple[Any, Client]] = futures.Future()
        call.add_done_callback(lambda done, b=bridge, c=client: b.set_result((done, c)))
        out.append(bridge)
    return out
