"""/v1/alerts: the feed, as a look at its newest and as a stream that resumes where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

import structlog
from fastapi import APIRouter, Header, Query, Request
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import SendTimeoutError
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from penstock.infra.gateway import metrics, openapi, positions
from penstock.infra.gateway.alert_log import AlertLog
from penstock.infra.gateway.errors import Problem, away
from penstock.infra.gateway.parts import Given, Parts, Tenant
from penstock.infra.gateway.records import Gap, RecentAlerts
from penstock.infra.gateway.seats import Seats
from penstock.infra.gateway.streams import AlertStream
from penstock.schemas import jsonl
from penstock.schemas.events import Alert
from penstock.schemas.validate import check_id

log = structlog.get_logger(role="gateway")
router = APIRouter(tags=["alerts"])

_STREAM = {
    200: {
        "description": "Server-sent events: `open` (the place to resume from), `alert` (data: an Alert), `gap` (data: "
        "a Gap; what was asked for is not kept any more). Comments are heartbeats and carry the newest id.",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
        "x-events": {"alert": openapi.ref(Alert), "gap": openapi.ref(Gap)},
    },
    **{code: one for code, one in openapi.answers(200, None, "", 401, 403, 503).items() if code != 200},
}


@router.get(
    "/v1/alerts",
    responses=openapi.answers(200, RecentAlerts, "Newest first", 401, 403, 503),
    response_class=JSONResponse,
)
async def recent_alerts(
    parts: Given,
    tenant: Tenant,
    person_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
) -> JSONResponse:
    """The newest alerts that the gateway has at hand: of all persons some thousands."""
    feed = _feed(parts)
    _check_person(person_id)
    items = [
        {"id": positions.write({entry.partition: entry.offset}), "alert": json.loads(entry.json or "null")}
        for entry in feed.recent(tenant, person_id, limit)
    ]
    resume = positions.write({partition: place - 1 for partition, place in feed.ends().items()})
    answer = jsonl.to_json(RecentAlerts(alerts=(), since=feed.since_ms(), resume=resume))
    return JSONResponse({**answer, "alerts": items})


@router.get("/v1/alerts/stream", responses=_STREAM, response_class=EventSourceResponse)
async def stream_alerts(
    request: Request,
    parts: Given,
    tenant: Tenant,
    person_id: str | None = None,
    after: Annotated[
        str | None, Query(description="an event id to go on from, or 'beginning' for all that is kept")
    ] = None,
    last_event_id: Annotated[str | None, Header(description="as browsers send it; wins over `after`")] = None,
) -> Response:
    """Alerts as they come, or from where an earlier stream broke off."""
    feed = _feed(parts)
    _check_person(person_id)
    field, given = ("Last-Event-ID", last_event_id) if last_event_id else ("after", after)
    beginning = given == positions.BEGINNING
    places = positions.starts(
        positions.read(given, field) if given and not beginning else None,
        feed.ends(),
        from_beginning=beginning,
        one_person=person_id is not None,
        field=field,
    )
    stream = AlertStream(feed, parts.history, tenant, person_id, places)
    parts.seats.take()
    return StreamAnswer(stream, parts.seats, parts.beat_s, parts.stall_s, request.state.request_id)


class StreamAnswer(EventSourceResponse):
    """Holds a seat until it ends, however it ends; a client that takes nothing for `stall_s` is cut off."""

    def __init__(self, stream: AlertStream, seats: Seats, beat_s: float, stall_s: float, request_id: str) -> None:
        super().__init__(_until_trouble(stream), ping=beat_s, ping_message_factory=stream.beat, send_timeout=stall_s)
        self._stream = stream
        self._seats = seats
        self._request_id = request_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            metrics.STREAMS_CUT.labels("stalled").inc()
            log.warning("stream cut off: its client reads nothing", request_id=self._request_id, at=self._stream.id())
        finally:
            self._seats.leave()


async def _until_trouble(stream: AlertStream) -> AsyncIterator[ServerSentEvent]:
    """A stream whose history cannot be read ends: its client asks again and goes on where it was."""
    try:
        async for event in stream.events():
            yield event
    except Problem as problem:
        metrics.STREAMS_CUT.labels("broker").inc()
        log.warning("stream ended", reason=problem.message, at=stream.id())


def _feed(parts: Parts) -> AlertLog:
    """The feed, once what is kept of it has been read. Raises Problem (503)."""
    if not parts.alert_reader.caught_up:
        raise away("the newest alerts are still being read")
    return parts.alert_log


def _check_person(person_id: str | None) -> None:
    if person_id is not None:
        check_id("person_id", person_id)
