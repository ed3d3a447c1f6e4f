"""Calling the ranker. Light: no torch, no Redis."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable

from penstock.schemas.events import RankRequest, RankResult
from penstock.schemas.grpc_avro import AsyncClient, Client
from penstock.schemas.grpc_streams import AsyncReplies, Replies
from penstock.schemas.rpc import Ranker, RoleStatus, StatusRequest


class RankerClient:
    """One ranker; `timeout` in seconds. Safe to share between threads; `close()` when done.

    Raises CallError: INVALID_ARGUMENT names the field at fault, RESOURCE_EXHAUSTED that the ranker has more to do than
    it can in time (`retry_after_s` says when to ask again, `refused_for` whether it is the tenant's own doing),
    DEADLINE_EXCEEDED that the answer would have come too late, UNAVAILABLE that a role behind the ranker is away.
    Of a stream, RESOURCE_EXHAUSTED means that the ranker has as many as it may, and UNAVAILABLE that it stops.
    """

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def rank(self, request: RankRequest, timeout: float) -> RankResult:
        """The ranked page. The ranker gives up at the request's deadline or after `timeout`, whichever is sooner."""
        result: RankResult = self._client.call(Ranker.RANK, request, timeout)
        return result

    def rank_stream(self, requests: Iterable[RankRequest], timeout: float | None) -> Replies[RankResult]:
        """A result for each request, in the order in which they are done: match them by tenant and request_id.

        A request that fails has a result with `error`. `requests` is read by a thread of its own, no faster than the
        ranker takes them in; what it raises comes out of the iterator. `timeout` is for the whole stream, None: until
        the last answer. Close the iterator to leave early: the ranker drops what it has not done. What has no result
        when a CallError ends the stream was not ranked, or not heard of: ask again.
        """
        return self._client.stream(Ranker.RANK_STREAM, requests, timeout)

    def status(self, timeout: float) -> RoleStatus:
        status: RoleStatus = self._client.call(Ranker.STATUS, StatusRequest(), timeout)
        return status

    def close(self) -> None:
        self._client.close()


class AsyncRankerClient:
    """The same with coroutines: a cancelled `rank` is cancelled at the ranker too. Make it on the loop that uses it."""

    def __init__(self, address: str) -> None:
        self._client = AsyncClient(address)

    async def rank(self, request: RankRequest, timeout: float) -> RankResult:
        """The ranked page. The ranker gives up at the request's deadline or after `timeout`, whichever is sooner."""
        result: RankResult = await self._client.call(Ranker.RANK, request, timeout)
        return result

    def rank_stream(self, requests: AsyncIterable[RankRequest], timeout: float | None) -> AsyncReplies[RankResult]:
        """A result for each request, as `RankerClient.rank_stream`; `requests` is read by a task of its own."""
        return self._client.stream(Ranker.RANK_STREAM, requests, timeout)

    async def status(self, timeout: float) -> RoleStatus:
        status: RoleStatus = await self._client.call(Ranker.STATUS, StatusRequest(), timeout)
        return status

    async def close(self) -> None:
        await self._client.close()
