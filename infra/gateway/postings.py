"""/v1/postings: publish one, withdraw one, see what the index holds of one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from penstock.infra.gateway import openapi
from penstock.infra.gateway.errors import Problem, not_found
from penstock.infra.gateway.parts import Given, Parts, Tenant, accepted, own, read_body
from penstock.infra.gateway.records import HeldPosting, Published
from penstock.schemas import jsonl
from penstock.schemas.events import MinVersion, Op, Posting
from penstock.schemas.rpc import GetRequest, RowState
from penstock.schemas.topics import POSTINGS
from penstock.schemas.validate import check_id, check_posting

router = APIRouter(tags=["postings"])
READ_S = 2.0


@router.post(
    "/v1/postings",
    status_code=202,
    responses=openapi.answers(202, Published, "The broker has it", 401, 403, 409, 413, 503),
    openapi_extra=openapi.body(Posting),
    response_class=JSONResponse,
)
async def publish_posting(request: Request, parts: Given, tenant: Tenant) -> JSONResponse:
    """Publish a posting or a change of one (a higher version). Searchable within a second."""
    posting = await read_body(request, Posting)
    return await _publish(request, parts, tenant, replace(posting, tenant=own(posting.tenant, tenant)))


@router.delete(
    "/v1/postings/{posting_id:path}",
    status_code=202,
    responses=openapi.answers(202, Published, "The broker has it", 401, 403, 409, 503),
    response_class=JSONResponse,
)
async def withdraw_posting(
    request: Request,
    parts: Given,
    tenant: Tenant,
    posting_id: str,
    version: Annotated[int, Query(description="higher than that of what is withdrawn")],
) -> JSONResponse:
    """Withdraw a posting."""
    event = Posting(posting_id=posting_id, version=version, op=Op.DELETE, tenant=tenant)
    return await _publish(request, parts, tenant, event)


@router.get(
    "/v1/postings/{posting_id:path}",
    responses=openapi.answers(200, HeldPosting, "What the index holds", 401, 403, 404, 503, 504),
    response_class=JSONResponse,
)
async def get_posting(
    parts: Given,
    tenant: Tenant,
    posting_id: str,
    min_version: Annotated[
        int | None, Query(ge=0, description="wait until this version is searchable, or say that it is not")
    ] = None,
) -> JSONResponse:
    """What the index holds of a posting, deleted and expired ones included for a while."""
    check_id("posting_id", posting_id)
    wanted = None if min_version is None else MinVersion(posting_id=posting_id, version=min_version)
    wait_ms = parts.settings.gateway.timeout_ms
    ask = GetRequest(tenant=tenant, posting_ids=(posting_id,), min_version=wanted, timeout_ms=wait_ms)
    reply = await asyncio.to_thread(parts.retrieval.get, ask, READ_S if wanted is None else wait_ms / 1000 + 1)
    row = reply.rows[0]
    update = row.update
    if row.state is RowState.ABSENT or update is None:
        if wanted is not None:
            raise Problem(
                404,
                f"there is no posting with this id, not within {wait_ms} ms: version {min_version} was not published, "
                "was refused, or is still on its way",
                field="posting_id",
                given=posting_id,
            )
        raise not_found("posting", posting_id)
    held = HeldPosting(
        posting_id=posting_id,
        version=update.version,
        revision=update.revision,
        state=row.state,
        posting=update.attributes if row.state is RowState.LIVE else None,
        summary=update.summary if row.state is RowState.LIVE else None,
        searchable_at=row.searchable_at,
        expires_at=update.expires_at,
        degraded=reply.degraded,
    )
    return JSONResponse(jsonl.to_json(held))


async def _publish(request: Request, parts: Parts, tenant: str, event: Posting) -> JSONResponse:
    event = replace(event, trace=event.trace or request.state.trace)
    check_posting(event, now_ms=parts.now_ms(), max_life_ms=parts.settings.postings.max_life_ms)
    if parts.keys:
        await _refuse_others(parts, tenant, event.posting_id)
    place = await parts.publisher.publish(POSTINGS, event)
    return accepted(POSTINGS, event.posting_id, event.version, place)


async def _refuse_others(parts: Parts, tenant: str, posting_id: str) -> None:
    """Ids are the whole system's: where tenants are kept apart by keys, none may replace another's posting."""
    reply = await asyncio.to_thread(parts.retrieval.get, GetRequest(posting_ids=(posting_id,)), READ_S)
    update = reply.rows[0].update
    if update is not None and update.tenant != tenant:
        raise Problem(409, "another tenant has a posting with this id", field="posting_id", given=posting_id)
