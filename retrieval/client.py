"""Calling the models role and the retrieval shards. No torch: Flink workers import this.

A retrieval call goes to every shard at once, under one deadline, and comes back as one reply in one total order. A
shard that does not answer is named in `degraded` and counted; only when none answers is there an error. A shard may
have replicas (`host:port|host:port`): another is asked when one fails or is slow (hedging.py). A client owns its
channels and nothing else: share one between threads, close it when done.
"""

from __future__ import annotations

import asyncio
import math
import queue
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, TypeVar

import grpc
from prometheus_client import Counter

from penstock.infra.telemetry import DEGRADED
from penstock.retrieval.hedging import Race, Replicas
from penstock.retrieval.search.order import merge
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Match, StandingQuery
from penstock.schemas.grpc_avro import AsyncClient, CallError, Client, call_error
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

C = TypeVar("C", Client, AsyncClient)

HEDGES = Counter("penstock_retrieval_hedges_total", "Calls sent to a second replica, by who answered", ["answered"])
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
    """The shards' addresses: `shards`, or `listen` alone where there is one shard. Replicas stand in one, with |."""
    return settings.shards or (settings.listen,)


@dataclass(frozen=True, slots=True)
class _Shard(Generic[C]):
    """One shard's channels, one a replica."""

    clients: list[C]
    replicas: Replicas

    @property
    def address(self) -> str:
        return "|".join(client.address for client in self.clients)


def _shards(addresses: Sequence[str], make: type[C]) -> list[_Shard[C]]:
    """Raises ValueError."""
    if not addresses:
        raise ValueError(NO_SHARDS)
    split = [address.split("|") for address in addresses]
    return [_Shard([make(one.strip()) for one in some], Replicas(len(some))) for some in split]


@dataclass(frozen=True, slots=True)
class _Failed:
    """A shard that did not answer: what each replica asked said."""

    errors: tuple[CallError, ...]

    @property
    def error(self) -> CallError:
        """The one to raise: that the caller is wrong, if one says so; else the last."""
        return next((error for error in self.errors if not error.retryable), self.errors[-1])

    def __str__(self) -> str:
        return "; ".join(map(str, self.errors))


def _final(error: CallError, request: Any) -> bool:
    """Whether no replica would say otherwise. An epoch is one process's own: another may be the one that knows it."""
    return not error.retryable and getattr(request, "at_epoch", None) is None


def _race(shard: _Shard[C], method: Method, request: Any) -> Race:
    """Calls that wait for a version are compared with one another alone: they are slow for good reason.

    A replica may be ahead of the one that is asked, so the wait is hedged like any call. A read at an epoch is not: an
    epoch is one process's own, so no other can answer in its place. Another is asked once that process has failed, or
    has said that the epoch is not its own: then it may have been the other's all along.
    """
    waits = getattr(request, "min_version", None) is not None
    return shard.replicas.race((method, waits), may_hedge=getattr(request, "at_epoch", None) is None)


def _left_to_wait(request: Any, seconds: float) -> Any:
    """The request for a replica that is asked so many seconds after the first: nobody waits longer for that."""
    if getattr(request, "min_version", None) is None:
        return request
    return replace(request, timeout_ms=max(0, request.timeout_ms - int(1000 * seconds)))


def _won(race: Race, replica: int) -> None:
    race.answered(replica, time.monotonic())
    if race.hedge is not None:
        HEDGES.labels("second" if replica == race.hedge else "first").inc()


class RetrievalClient:
    """All shards as one: `timeout` in seconds, CallError when no shard answers or the request itself is wrong."""

    def __init__(self, shards: Sequence[str]) -> None:
        self._shards = _shards(shards, Client)

    def search(self, request: SearchRequest, timeout: float) -> SearchReply:
        """The best `k` over all shards, merged exactly; `total` is their sum.

        With several shards `epoch` is the oldest one read and `shard` lists `name@epoch` of each. A read at an epoch
        is then refused, since each shard counts its own.
        """
        if len(self._shards) == 1:
            [reply] = self._every(Retrieval.SEARCH, {0: request}, timeout)
            only: SearchReply = reply
            return only
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
        if len(self._shards) == 1:
            [reply] = self._every(Retrieval.GET, {0: request}, timeout)
            only: GetReply = reply
            return only
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
                self._shards[0].address,
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
            plan=tuple(line for r in replies for line in r.plan),
        )

    def status(self, timeout: float) -> list[RoleStatus]:
        """One a shard, in the order given: of the first replica that is ready; `replicas_not_ready` names the others.

        A shard of which none is ready is not, with the reasons.
        """
        waiting = [
            [client.start(Retrieval.STATUS, StatusRequest(), timeout) for client in shard.clients]
            for shard in self._shards
        ]
        return [
            _status_of(shard, [_status(client, call) for client, call in zip(shard.clients, calls, strict=True)])
            for shard, calls in zip(self._shards, waiting, strict=True)
        ]

    def close(self) -> None:
        for shard in self._shards:
            for client in shard.clients:
                client.close()

    def percolate(self, request: PercolateRequest, timeout: float) -> PercolateReply:
        """What each posting matches, over all shards. Every shard must answer: a missing one would lose alerts."""
        give_up = time.monotonic() + timeout
        found: list[list[PercolateReply]] = [[] for _ in self._shards]
        while open_ := dict(_unanswered(found, len(request.updates))):
            left = max(give_up - time.monotonic(), 0.001)
            asked = {shard: replace(request, updates=request.updates[begin:]) for shard, begin in open_.items()}
            for shard, reply in zip(asked, self._every(Retrieval.PERCOLATE, asked, left), strict=True):
                found[shard].append(reply)
        return _percolated(found)

    def standing(self, request: StandingRequest, timeout: float) -> StandingReply:
        """Which version of each subscription is percolated. Every shard must answer: a subscription lives in one."""
        return _standing(self._every(Retrieval.STANDING, dict.fromkeys(range(len(self._shards)), request), timeout))

    def _every(self, method: Method, requests: Mapping[int, Any], timeout: float) -> list[Any]:
        """The replies of the shards asked, in order. Raises the first CallError."""
        replies = dict.fromkeys(requests)
        with closing(self._outcomes(method, requests, timeout)) as outcomes:
            for shard, outcome in outcomes:
                if isinstance(outcome, _Failed):
                    raise outcome.error
                replies[shard] = outcome
        return list(replies.values())

    def _gather(self, method: Method, request: Any, timeout: float) -> tuple[list[Any], tuple[str, ...]]:
        """(replies, the shards that did not answer). Raises CallError when none did, or one says the call is wrong."""
        asked = dict.fromkeys(range(len(self._shards)), request)
        outcomes = [outcome for _, outcome in sorted(self._outcomes(method, asked, timeout), key=lambda one: one[0])]
        failed = [outcome for outcome in outcomes if isinstance(outcome, _Failed)]
        replies = [outcome for outcome in outcomes if not isinstance(outcome, _Failed)]
        for failure in failed:
            if not failure.error.retryable or not replies:
                raise failure.error
        if failed:
            DEGRADED.labels("retrieval-client", "shard missing").inc(len(failed))
        return replies, tuple(f"shard missing: {failure}" for failure in failed)

    def _await_version(self, probe: GetRequest, timeout: float) -> tuple[list[GetReply], tuple[str, ...]]:
        """The first reply that has the version asked for, alone; else every reply, and that it timed out."""
        first_error: CallError | None = None
        replies: list[GetReply] = []
        missing: list[str] = []
        asked = dict.fromkeys(range(len(self._shards)), probe)
        with closing(self._outcomes(Retrieval.GET, asked, timeout)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, _Failed):
                    first_error = first_error or outcome.error
                    missing.append(f"shard missing: {outcome}")
                    continue
                if MIN_VERSION_TIMED_OUT not in outcome.degraded:
                    return [outcome], ()
                replies.append(outcome)
        if not replies and first_error is not None:
            raise first_error
        DEGRADED.labels("retrieval-client", MIN_VERSION_TIMED_OUT).inc()
        return replies, (MIN_VERSION_TIMED_OUT, *missing)

    def _outcomes(
        self, method: Method, requests: Mapping[int, Any], timeout: float
    ) -> Generator[tuple[int, Any | _Failed], None, None]:
        """(shard, its reply or what went wrong), each as it comes. Calls still under way at the end are cancelled.

        Of replicas that wait for a version the first that has it answers; that none has, the last one says.
        """
        began = time.monotonic()
        give_up = began + timeout
        done: queue.SimpleQueue[tuple[int, int, Any]] = queue.SimpleQueue()  # shard, replica, call
        calls: dict[tuple[int, int], Any] = {}
        errors: dict[int, tuple[CallError, ...]] = dict.fromkeys(requests, ())
        late: dict[int, Any] = {}  # of a shard, a replica's reply without the version
        races = {shard: _race(self._shards[shard], method, request) for shard, request in requests.items()}

        def start(shard: int, replica: int) -> None:
            now = time.monotonic()
            request = _left_to_wait(requests[shard], now - began)
            call = self._shards[shard].clients[replica].start(method, request, max(give_up - now, 0.001))
            calls[shard, replica] = call
            call.add_done_callback(lambda ended: done.put((shard, replica, ended)))

        try:
            for shard, race in races.items():
                start(shard, race.ask(time.monotonic()))
            while races:
                hedge_at, slowest = min((race.hedge_at(), shard) for shard, race in races.items())
                left = None if hedge_at == math.inf else max(0.0, hedge_at - time.monotonic())
                try:
                    shard, replica, call = done.get(timeout=left)
                except queue.Empty:
                    beside = races[slowest].ask_beside(time.monotonic())
                    if beside is not None:
                        start(slowest, beside)
                    continue
                race_ = races.get(shard)
                if race_ is None:
                    continue
                try:
                    reply = call.result()
                except grpc.RpcError as error:
                    address = self._shards[shard].clients[replica].address
                    failure = call_error(method, address, error)
                    errors[shard] += (failure,)
                    again = race_.failed(replica) and time.monotonic() < give_up
                    if not _final(failure, requests[shard]):
                        if again:
                            start(shard, race_.ask(time.monotonic()))
                            continue
                        if race_.under_way():
                            continue
                    del races[shard]
                    self._cancel(calls, shard)
                    yield shard, late.get(shard) or _Failed(errors[shard])
                else:
                    if MIN_VERSION_TIMED_OUT in getattr(reply, "degraded", ()) and race_.in_vain(replica):
                        late[shard] = reply
                        continue
                    _won(race_, replica)
                    del races[shard]
                    self._cancel(calls, shard)
                    yield shard, reply
        finally:
            for call in calls.values():
                call.cancel()  # of one that is done this does nothing

    @staticmethod
    def _cancel(calls: dict[tuple[int, int], Any], shard: int) -> None:
        for (whose, _), call in calls.items():
            if whose == shard:
                call.cancel()

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
        self._shards = _shards(shards, AsyncClient)

    async def percolate(self, request: PercolateRequest, timeout: float) -> PercolateReply:
        """As RetrievalClient.percolate: every shard must answer, else CallError."""
        give_up = time.monotonic() + timeout
        found: list[list[PercolateReply]] = [[] for _ in self._shards]
        while open_ := _unanswered(found, len(request.updates)):
            asks = (
                self._ask(shard, Retrieval.PERCOLATE, replace(request, updates=request.updates[begin:]), give_up)
                for shard, begin in open_
            )
            for (shard, _), reply in zip(open_, await asyncio.gather(*asks), strict=True):
                found[shard].append(reply)
        return _percolated(found)

    async def standing(self, request: StandingRequest, timeout: float) -> StandingReply:
        """As RetrievalClient.standing."""
        give_up = time.monotonic() + timeout
        asks = (self._ask(shard, Retrieval.STANDING, request, give_up) for shard in range(len(self._shards)))
        return _standing(await asyncio.gather(*asks))

    async def _ask(self, number: int, method: Method, request: Any, give_up: float) -> Any:
        """One shard's reply. Raises CallError. Calls still under way at the end are cancelled."""
        shard = self._shards[number]
        race = _race(shard, method, request)
        calls: dict[asyncio.Task[Any], int] = {}
        errors: tuple[CallError, ...] = ()

        def start(replica: int) -> None:
            left = max(give_up - time.monotonic(), 0.001)
            calls[asyncio.ensure_future(shard.clients[replica].call(method, request, left))] = replica

        try:
            start(race.ask(time.monotonic()))
            while True:
                hedge_at = race.hedge_at()
                left = None if hedge_at == math.inf else max(0.0, hedge_at - time.monotonic())
                done, _ = await asyncio.wait(calls, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not done and (beside := race.ask_beside(time.monotonic())) is not None:
                    start(beside)
                for call in done:
                    replica = calls.pop(call)
                    try:
                        reply = call.result()
                    except CallError as error:
                        errors += (error,)
                        again = race.failed(replica) and time.monotonic() < give_up
                        if _final(error, request) or not (again or race.under_way()):
                            raise _Failed(errors).error from error
                        if again:
                            start(race.ask(time.monotonic()))
                    else:
                        _won(race, replica)
                        return reply
        finally:
            for call in calls:
                call.cancel()

    async def close(self) -> None:
        for shard in self._shards:
            for client in shard.clients:
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


def _status(client: Client, call: Any) -> RoleStatus:
    """A replica's own account, or why there is none."""
    try:
        told: RoleStatus = call.result()
    except grpc.RpcError as error:
        reason = str(call_error(Retrieval.STATUS, client.address, error))
        return RoleStatus(role="retrieval", ready=False, reason=reason, numbers={}, texts={})
    return told


def _status_of(shard: _Shard[Client], told: Sequence[RoleStatus]) -> RoleStatus:
    if len(told) == 1:
        return told[0]
    unready = [
        f"{client.address}: {status.reason}"
        for client, status in zip(shard.clients, told, strict=True)
        if not status.ready
    ]
    best = next((status for status in told if status.ready), told[0])
    reason = "" if best.ready else "; ".join(unready)
    return replace(best, reason=reason, texts={**best.texts, "replicas_not_ready": "; ".join(unready)})
