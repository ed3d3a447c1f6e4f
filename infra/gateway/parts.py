"""What the routes work with, made once: clients of the roles, the topics as followed here, bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeVar

from fastapi import Depends, Request
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from penstock.infra.gateway.alert_log import AlertLog
from penstock.infra.gateway.auth import decide_tenant
from penstock.infra.gateway.history import History
from penstock.infra.gateway.publisher import Place, Publisher
from penstock.infra.gateway.records import Published
from penstock.infra.gateway.seats import Seats
from penstock.infra.gateway.subscription_view import SubscriptionView
from penstock.infra.settings import Settings
from penstock.infra.telemetry import UNKNOWN_SYMBOLS
from penstock.schemas import jsonl
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import RankRequest, RankResult
from penstock.schemas.rpc import (
    ExplainReply,
    ExplainRequest,
    GetReply,
    GetRequest,
    RoleStatus,
    StandingReply,
    StandingRequest,
)
from penstock.schemas.topics import Topic

T = TypeVar("T")
R = TypeVar("R")


class Ranker(Protocol):
    """`ranker.client.AsyncRankerClient`."""

    async def rank(self, request: RankRequest, timeout: float) -> RankResult: ...

    async def status(self, timeout: float) -> RoleStatus: ...


class Retrieval(Protocol):
    """`retrieval.client.RetrievalClient`: called in a thread."""

    def get(self, request: GetRequest, timeout: float) -> GetReply: ...

    def explain(self, request: ExplainRequest, timeout: float) -> ExplainReply: ...

    def standing(self, request: StandingRequest, timeout: float) -> StandingReply: ...

    def status(self, timeout: float) -> list[RoleStatus]: ...


class Reader(Protocol):
    """`follower.Follower`."""

    @property
    def caught_up(self) -> bool: ...

    def not_ready(self) -> str: ...

    def stuck(self) -> str: ...


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


@dataclass(slots=True, kw_only=True)
class Parts:
    """`worked_at`: when a search last worked, on the monotonic clock (readiness is then cheap)."""

    settings: Settings
    ranker: Ranker
    retrieval: Retrieval
    publisher: Publisher
    alert_log: AlertLog
    alert_reader: Reader
    history: History
    subscriptions: SubscriptionView
    subscription_reader: Reader
    seats: Seats
    now_ms: Callable[[], int] = wall_ms
    beat_s: float = 15.0  # seconds between a stream's heartbeats
    stall_s: float = 20.0  # a client that takes nothing for so long is cut off
    worked_at: float = float("-inf")
    keys: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.keys = {tenant: key.get_secret_value() for tenant, key in self.settings.gateway.api_keys.items()}

    @property
    def timeout_s(self) -> float:
        return self.settings.gateway.timeout_ms / 1000


def _parts(request: Request) -> Parts:
    parts: Parts = request.app.state.parts
    return parts


def _tenant(request: Request) -> str:
    return decide_tenant(_parts(request).keys, request.headers)


Given = Annotated[Parts, Depends(_parts)]
Tenant = Annotated[str, Depends(_tenant)]


async def read_body(request: Request, record: type[R]) -> R:
    """The record in the request's body. Raises InvalidRecord, MalformedRecord or Problem (413)."""
    return jsonl.loads(record, await request.body(), count_unknown)


def count_unknown(name: str, _symbol: str) -> None:
    """An enum symbol that nobody here knows is UNKNOWN from here on, and counted."""
    UNKNOWN_SYMBOLS.labels(name).inc()


def own(given: str, tenant: str) -> str:
    """The tenant of a record that somebody publishes: the caller's own. Raises InvalidRecord for another's."""
    if given not in ("default", tenant):
        raise InvalidRecord("tenant", given, f"{tenant!r}, whose request this is, or none")
    return tenant


def accepted(topic: Topic, record_id: str, version: int, place: Place) -> JSONResponse:
    """202: the broker has the record, here."""
    published = Published(
        id=record_id, version=version, topic=topic.name, partition=place.partition, offset=place.offset
    )
    return JSONResponse(jsonl.to_json(published), 202)


async def while_waited_for(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`, which is cancelled when the caller goes away. The body must have been read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
