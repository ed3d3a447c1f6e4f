"""/livez: is this process at work. /readyz: would a search, a publication and a stream work now. /metrics.

Readiness comes from real work: while searches and deliveries succeed nothing else is asked; otherwise the roles and the
broker are, all at once, at most once a second however often somebody looks.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response

from penstock.infra.gateway import openapi
from penstock.infra.gateway.parts import Given, Parts
from penstock.infra.gateway.records import Readiness
from penstock.schemas import jsonl
from penstock.schemas.grpc_avro import CallError

router = APIRouter(tags=["health"])
FRESH_S = 5.0  # work done so recently is proof enough
AGAIN_S = 1.0
ASK_S = 2.0


class Health:
    """Owned by the event loop; one look at a time, the others wait for its outcome."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = asyncio.Lock()
        self._looked_at = float("-inf")
        self._last = Readiness(ready=False, checks={})

    async def readiness(self, parts: Parts) -> Readiness:
        async with self._lock:
            if self._clock() - self._looked_at > AGAIN_S:
                self._last = await look(parts, self._clock())
                self._looked_at = self._clock()
            return self._last


async def look(parts: Parts, now: float) -> Readiness:
    """Each check with the reason it fails; empty when it does not. `now`: monotonic seconds."""
    searched = now - parts.worked_at < FRESH_S
    delivered = now - parts.publisher.delivered_at < FRESH_S
    ranker, retrieval, broker = await asyncio.gather(
        _nothing() if searched else _ranker(parts),
        _nothing() if searched else asyncio.to_thread(_retrieval, parts),
        _nothing() if delivered else parts.publisher.metadata(ASK_S),
    )
    checks = {
        "ranker": ranker,
        "retrieval": retrieval,
        "broker": broker,
        "alerts": parts.alert_reader.not_ready(),
        "subscriptions": parts.subscription_reader.not_ready(),
    }
    return Readiness(ready=not any(checks.values()), checks=checks)


async def _nothing() -> str:
    return ""


async def _ranker(parts: Parts) -> str:
    try:
        status = await parts.ranker.status(ASK_S)
    except CallError:
        return "the ranker does not answer"
    return "" if status.ready else "the ranker is not ready: its own status says why"


def _retrieval(parts: Parts) -> str:
    shards = parts.retrieval.status(ASK_S)
    ready = sum(shard.ready for shard in shards)
    return "" if ready else f"none of {len(shards)} retrieval shards is ready"


@router.get("/livez", responses=openapi.answers(200, Readiness, "At work"), response_class=JSONResponse)
async def livez(parts: Given) -> JSONResponse:
    """Whether the event loop and the threads beside it move. 503: start it anew."""
    checks = {
        "alerts": parts.alert_reader.stuck(),
        "subscriptions": parts.subscription_reader.stuck(),
        "publisher": parts.publisher.stuck(),
    }
    alive = not any(checks.values())
    return JSONResponse(jsonl.to_json(Readiness(ready=alive, checks=checks)), 200 if alive else 503)


@router.get("/readyz", responses=openapi.answers(200, Readiness, "Ready"), response_class=JSONResponse)
async def readyz(request: Request, parts: Given) -> JSONResponse:
    """Whether searches, publications and streams would work now. 503 with each reason otherwise."""
    found = await request.app.state.health.readiness(parts)
    return JSONResponse(jsonl.to_json(found), 200 if found.ready else 503, {} if found.ready else {"Retry-After": "1"})


@router.get("/metrics", response_class=Response, include_in_schema=False)
async def metrics() -> Response:
    """For Prometheus."""
    return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
