"""/v1/subscriptions: what people want to be told about, published to the topic and listed from a view of it."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from penstock.infra.gateway import openapi
from penstock.infra.gateway.errors import Problem, away, not_found
from penstock.infra.gateway.parts import Given, Parts, Tenant, accepted, count_unknown, own
from penstock.infra.gateway.records import HeldSubscription, Published, Subscriptions
from penstock.infra.gateway.subscription_view import SubscriptionView
from penstock.infra.telemetry import DEGRADED
from penstock.schemas import jsonl
from penstock.schemas.errors import InvalidRecord, MalformedRecord
from penstock.schemas.events import Op, Subscription
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import StandingRequest
from penstock.schemas.topics import SUBSCRIPTIONS
from penstock.schemas.validate import check_subscription

router = APIRouter(tags=["subscriptions"])
READ_S = 2.0
SEEN_S = 1.0  # seconds that an answer waits until a list would show what was published
_FILLED_IN = ("subscription_id", "version")
_PUBLISHED = openapi.answers(202, Published, "The broker has it", 401, 403, 409, 413, 503)


@router.post(
    "/v1/subscriptions",
    status_code=202,
    responses=_PUBLISHED,
    openapi_extra=openapi.body(Subscription, _FILLED_IN),
    response_class=JSONResponse,
)
async def subscribe(request: Request, parts: Given, tenant: Tenant) -> JSONResponse:
    """Subscribe a person. Without subscription_id one is made; without version it is newer than what there is."""
    return await _put(request, parts, tenant, await _document(request), None)


@router.put(
    "/v1/subscriptions/{subscription_id:path}",
    status_code=202,
    responses=_PUBLISHED,
    openapi_extra=openapi.body(Subscription, _FILLED_IN),
    response_class=JSONResponse,
)
async def change_subscription(request: Request, parts: Given, tenant: Tenant, subscription_id: str) -> JSONResponse:
    """Make or replace a subscription."""
    return await _put(request, parts, tenant, await _document(request), subscription_id)


@router.get(
    "/v1/subscriptions",
    responses=openapi.answers(200, Subscriptions, "By id", 401, 403, 503),
    response_class=JSONResponse,
)
async def list_subscriptions(
    parts: Given,
    tenant: Tenant,
    person_id: str | None = None,
    after: Annotated[str, Query(description="next_after of the list before")] = "",
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> JSONResponse:
    """A person's subscriptions, or everybody's."""
    view = _view(parts)
    ids = view.ids(tenant, person_id, after, limit + 1)
    found = [one for one in (view.get(tenant, name) for name in ids[:limit]) if one is not None]
    held, degraded = await _in_force(parts, tenant, found)
    more = ids[limit - 1] if len(ids) > limit else None
    return JSONResponse(jsonl.to_json(Subscriptions(subscriptions=held, next_after=more, degraded=degraded)))


@router.get(
    "/v1/subscriptions/{subscription_id:path}",
    responses=openapi.answers(200, HeldSubscription, "The subscription", 401, 403, 404, 503),
    response_class=JSONResponse,
)
async def get_subscription(parts: Given, tenant: Tenant, subscription_id: str) -> JSONResponse:
    """One subscription, and whether new postings meet it already."""
    found = _view(parts).get(tenant, subscription_id)
    if found is None:
        raise not_found("subscription", subscription_id)
    held, _ = await _in_force(parts, tenant, [found])
    return JSONResponse(jsonl.to_json(held[0]))


@router.delete(
    "/v1/subscriptions/{subscription_id:path}",
    status_code=202,
    responses=openapi.answers(202, Published, "The broker has it", 401, 403, 404, 503),
    response_class=JSONResponse,
)
async def unsubscribe(
    request: Request,
    parts: Given,
    tenant: Tenant,
    subscription_id: str,
    version: Annotated[int | None, Query(ge=0, description="by default newer than what there is")] = None,
) -> JSONResponse:
    """End a subscription: nothing is sent for it any more."""
    view = _view(parts)
    found = view.get(tenant, subscription_id)
    if found is None:
        raise not_found("subscription", subscription_id)
    event = Subscription(
        subscription_id=subscription_id,
        version=_newer(parts, subscription_id) if version is None else version,
        op=Op.DELETE,
        tenant=tenant,
        person_id=found.person_id,
    )
    return await _publish(request, parts, event)


# --- publishing --------------------------------------------------------------------------------------------------


async def _document(request: Request) -> dict[str, Any]:
    """The body before its id and version are filled in."""
    try:
        given = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise MalformedRecord(f"not JSON: {error}") from error
    if not isinstance(given, dict):
        raise InvalidRecord("Subscription", given, "a JSON object")
    return given


async def _put(
    request: Request, parts: Parts, tenant: str, given: dict[str, Any], subscription_id: str | None
) -> JSONResponse:
    view = _view(parts)
    named = given.get("subscription_id")
    if subscription_id is not None and named not in (None, subscription_id):
        raise InvalidRecord("subscription_id", named, f"{subscription_id!r}, as in the address, or none")
    name = subscription_id or named or f"sub-{uuid.uuid4().hex}"
    if given.get("version") is None:
        given["version"] = _newer(parts, str(name))
    event = jsonl.from_json(Subscription, {**given, "subscription_id": name}, count_unknown)
    if event.op is not Op.UPSERT:
        raise InvalidRecord("op", event.op, "UPSERT, or none: to end a subscription, DELETE it")
    event = replace(event, tenant=own(event.tenant, tenant))
    holder = view.tenant(event.subscription_id)
    if holder not in (None, tenant):
        raise Problem(409, "another tenant has a subscription with this id", field="subscription_id", given=name)
    held = view.get(tenant, event.subscription_id)
    if held is not None and held.person_id != event.person_id:
        raise InvalidRecord("person_id", event.person_id, f"{held.person_id!r}, whose subscription this is")
    return await _publish(request, parts, event)


async def _publish(request: Request, parts: Parts, event: Subscription) -> JSONResponse:
    event = replace(event, trace=event.trace or request.state.trace)
    check_subscription(event)
    known = parts.subscriptions.version(event.subscription_id)
    if event.version <= known:  # the alerts job would drop it
        raise InvalidRecord("version", event.version, f"more than {known}, the newest of this id, or none")
    place = await parts.publisher.publish(SUBSCRIPTIONS, event)
    await parts.subscriptions.reached(place.partition, place.offset, SEEN_S)
    return accepted(SUBSCRIPTIONS, event.subscription_id, event.version, place)


def _newer(parts: Parts, subscription_id: str) -> int:
    """A version after all that are known: the clock's, unless somebody's clock was ahead."""
    return max(parts.now_ms(), parts.subscriptions.version(subscription_id) + 1)


# --- reading -----------------------------------------------------------------------------------------------------


def _view(parts: Parts) -> SubscriptionView:
    """The view, once it is whole. Raises Problem (503)."""
    if not parts.subscription_reader.caught_up:
        raise away("the subscriptions are still being read")
    return parts.subscriptions


async def _in_force(
    parts: Parts, tenant: str, found: Sequence[Subscription]
) -> tuple[tuple[HeldSubscription, ...], tuple[str, ...]]:
    """Each with whether retrieval percolates its newest version, where retrieval says so."""
    if not found:
        return (), ()
    ask = StandingRequest(tenant=tenant, subscription_ids=tuple(one.subscription_id for one in found))
    try:
        reply = await asyncio.to_thread(parts.retrieval.standing, ask, READ_S)
    except CallError:
        DEGRADED.labels("gateway", "in_force not known").inc()
        return tuple(HeldSubscription(subscription=one) for one in found), ("in_force: retrieval did not answer",)
    held = tuple(
        HeldSubscription(subscription=one, in_force=in_force and version >= one.version)
        for one, version, in_force in zip(found, reply.versions, reply.in_force, strict=True)
    )
    return held, ()
