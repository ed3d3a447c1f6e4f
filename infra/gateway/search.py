"""/v1/search: a person's or a program's query through the ranker, each item with its posting beside it.

Where it stands: life-of-a-query.md, step 1.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse

from penstock.infra.gateway import openapi
from penstock.infra.gateway.errors import Problem
from penstock.infra.gateway.parts import Given, Parts, Tenant, read_body, while_waited_for
from penstock.infra.gateway.records import Search, SearchAnswer, SearchItem
from penstock.infra.telemetry import DEGRADED
from penstock.schemas import filters, jsonl
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import Filter, Page, RankClass, RankQuery, RankRequest, RankResult, SearchQuery
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import ExplainReply, ExplainRequest, GetRequest, Row, RowState
from penstock.schemas.validate import check_query

router = APIRouter(tags=["search"])
READ_S = 2.0  # seconds that postings and explanations may take beside the ranking
_ANSWERS = openapi.answers(200, SearchAnswer, "A page of ranked postings", 401, 403, 413, 429, 503, 504)


@router.post("/v1/search", responses=_ANSWERS, openapi_extra=openapi.body(Search), response_class=JSONResponse)
async def search(request: Request, parts: Given, tenant: Tenant) -> JSONResponse:
    """Rank postings for words, filters or both."""
    return await _answer(request, parts, tenant, await read_body(request, Search))


@router.get("/v1/search", responses=_ANSWERS, response_class=JSONResponse)
async def search_by_address(
    request: Request,
    parts: Given,
    tenant: Tenant,
    q: Annotated[str, Query(description="what to look for, in words")] = "",
    filter: Annotated[
        list[str] | None, Query(description="a hard filter in the text form, such as salary.annual_max>=60000")
    ] = None,
    size: int = 10,
    cursor: str | None = None,
    deadline_ms: int | None = None,
    person_id: str | None = None,
    explain: bool = False,
) -> JSONResponse:
    """The same from an address bar."""
    await request.body()  # so that what comes next from the caller is that they left
    asked = Search(
        text=q,
        filters=filters.all_of(*(filters.parse(clause) for clause in filter or ())),
        size=size,
        cursor=cursor or None,
        deadline_ms=deadline_ms,
        person_id=person_id,
        explain=explain,
    )
    return await _answer(request, parts, tenant, asked)


async def _answer(request: Request, parts: Parts, tenant: str, asked: Search) -> JSONResponse:
    ranked = rank_request(
        asked,
        tenant,
        request_id=request.state.request_id,
        trace=request.state.trace,
        now_ms=parts.now_ms(),
        longest_ms=parts.settings.gateway.timeout_ms,
    )
    answer = await while_waited_for(request, _find(parts, ranked, explain=asked.explain))
    return JSONResponse(jsonl.to_json(answer))


def rank_request(
    asked: Search, tenant: str, *, request_id: str, trace: str, now_ms: int, longest_ms: int
) -> RankRequest:
    """What the ranker is asked. Pure. Raises InvalidRecord naming the field as the caller wrote it."""
    wait_ms = longest_ms if asked.deadline_ms is None else min(asked.deadline_ms, longest_ms)
    try:
        check_query(
            SearchQuery(
                request_id=request_id,
                tenant=tenant,
                person_id=asked.person_id,
                text=asked.text,
                filters=asked.filters,
                deadline_ms=wait_ms,
                page=Page(size=asked.size, cursor=asked.cursor),
                min_version=asked.min_version,
                trace=trace,
            )
        )
    except InvalidRecord as error:
        raise InvalidRecord(error.field.removeprefix("page."), error.given, error.expected) from error
    return RankRequest(
        request_id=request_id,
        tenant=tenant,
        class_=RankClass.INTERACTIVE,
        deadline=now_ms + wait_ms,
        query=RankQuery(text=asked.text, filters=asked.filters, person_id=asked.person_id),
        page=Page(size=asked.size, cursor=asked.cursor),
        min_version=asked.min_version,
        produced_at=now_ms,
        trace=trace,
    )


async def _find(parts: Parts, ranked: RankRequest, *, explain: bool) -> SearchAnswer:
    remaining_s = (ranked.deadline - (ranked.produced_at or 0)) / 1000
    result = await parts.ranker.rank(ranked, remaining_s)
    if result.error is not None:
        raise Problem(504 if "deadline" in result.error.lower() else 503, "the ranker has no answer to this", retry_s=1)
    parts.worked_at = time.monotonic()
    rows, explanation = await asyncio.gather(
        asyncio.to_thread(_rows, parts, ranked.tenant, result), _explained(parts, ranked, result, explain)
    )
    return answer_of(ranked.request_id, result, rows, explanation, explain=explain)


def _rows(parts: Parts, tenant: str, result: RankResult) -> dict[str, Row] | str:
    """Rows by id, or why there are none: the ranking is worth having without titles."""
    names = tuple(item.posting_id for item in result.items)
    if not names:
        return {}
    try:
        reply = parts.retrieval.get(GetRequest(tenant=tenant, posting_ids=names), READ_S)
    except CallError:
        DEGRADED.labels("gateway", "postings not read").inc()
        return "postings: retrieval did not answer, items come without them"
    return {row.posting_id: row for row in reply.rows}


async def _explained(parts: Parts, ranked: RankRequest, result: RankResult, wanted: bool) -> ExplainReply | str | None:
    tree = applied(ranked.query.filters, result)
    if not wanted or tree is None:
        return None
    try:
        return await asyncio.to_thread(
            parts.retrieval.explain, ExplainRequest(tenant=ranked.tenant, filters=tree), READ_S
        )
    except CallError:
        DEGRADED.labels("gateway", "not explained").inc()
        return "explanation: retrieval did not answer"


def applied(own: Filter | None, result: RankResult) -> Filter | None:
    """Everything that decided which postings pass: the caller's filters and what was understood and applied."""
    return filters.all_of(own, *(one.filter for one in result.understood if one.applied))


def answer_of(
    request_id: str,
    result: RankResult,
    rows: dict[str, Row] | str,
    explanation: ExplainReply | str | None,
    *,
    explain: bool,
) -> SearchAnswer:
    """The page as the caller gets it. Pure."""
    notes = tuple(note for note in (rows, explanation) if isinstance(note, str))
    held: dict[str, Row] = {} if isinstance(rows, str) else rows
    items = []
    for item in result.items:
        row = held.get(item.posting_id)
        live = row is not None and row.state is RowState.LIVE and row.update is not None
        items.append(
            SearchItem(
                posting_id=item.posting_id,
                version=item.version,
                score=item.score,
                state=RowState.UNKNOWN if row is None else row.state,
                posting=row.update.attributes if live and row is not None and row.update is not None else None,
                parts=item.parts if explain else None,
            )
        )
    answer: dict[str, Any] = {
        name: getattr(result, name)
        for name in ("total", "next_cursor", "epoch", "understood", "depth_asked", "depth_served", "lm_scored")
    }
    return replace(
        SearchAnswer(request_id=request_id, items=tuple(items), timings=result.timings, **answer),
        cache_hits=result.cache_hits,
        model_id=result.model_id,
        degraded=(*result.degraded, *notes),
        explanation=None if isinstance(explanation, str) else explanation,
    )
