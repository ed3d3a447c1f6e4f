"""Calling the ranker. Light: no torch, no Redis."""

from __future__ import annotations

from penstock.schemas.events import RankRequest, RankResult
from penstock.schemas.grpc_avro import AsyncClient, Client
from penstock.schemas.rpc import Ranker, RoleStatus, StatusRequest


class RankerClient:
    """One ranker; `timeout` in seconds. Safe to share between threads; `close()` when done.

    Raises CallError: INVALID_ARGUMENT names the field at fault, RESOURCE_EXHAUSTED means the queue is full,
    DEADLINE_EXCEEDED that the answer would have come too late, UNAVAILABLE that a role behind the ranker is away.
    """

    def __init__(self, address: str) -> None:
        self._client = Client(address)

    def rank(self, request: RankRequest, timeout: float) -> RankResult:
        """The ranked page. The ranker gives up at the request's deadline or after `timeout`, whichever is sooner."""
        result: RankResult = self._client.call(Ranker.RANK, request, timeout)
        return result

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

    async def status(self, timeout: float) -> RoleStatus:
        status: RoleStatus = await self._client.call(Ranker.STATUS, StatusRequest(), timeout)
        return status

    async def close(self) -> None:
        await self._client.close()
