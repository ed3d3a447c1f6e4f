"""The HTTP application, assembled from one module a subject.

request ──> Observed (ids, trace, metrics) ──> BodyLimit ──> route ──> ranker, retrieval: gRPC
                                                                  ──> broker, and what is followed of its topics
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from penstock.infra.gateway import alerts, health, openapi, page, postings, search, subscriptions
from penstock.infra.gateway.errors import Problem, problem_of
from penstock.infra.gateway.middleware import BodyLimit, Observed, answer
from penstock.infra.gateway.parts import Parts
from penstock.schemas.errors import WireError
from penstock.schemas.grpc_avro import CallError

DESCRIPTION = (
    "Search, publish, subscribe and follow alerts over HTTP. Fields are those of the topics' records. Every error is "
    "{error: {field, given, expected, message, request_id}}."
)
Opened = Callable[[], AbstractAsyncContextManager[Parts]]


def describe_app() -> FastAPI:
    """The routes alone, for their description."""
    app = FastAPI(
        title="Penstock",
        version="1",
        description=DESCRIPTION,
        docs_url=None,  # its page is made of assets from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    for one in (search, postings, subscriptions, alerts, health, page):
        app.include_router(one.router)
    return app


def make_app(opened: Opened, max_body_bytes: int) -> FastAPI:
    """`opened` gives the parts for as long as the application runs; it is entered on the event loop."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened() as parts:
            app.state.parts = parts
            app.state.health = health.Health()
            yield

    app = describe_app()
    app.router.lifespan_context = lifespan
    made: dict[str, Any] = {}

    def described() -> dict[str, Any]:
        if not made:
            made.update(openapi.document(app))
        return made

    app.openapi = described  # type: ignore[method-assign]  # as FastAPI documents it
    for kind in (Problem, WireError, CallError, TimeoutError):
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_middleware(BodyLimit, limit=max_body_bytes)
    app.add_middleware(Observed)
    return app


async def _told(request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    assert problem is not None
    return answer(problem, request.scope)


async def _invalid(request: Request, error: Exception) -> Response:
    """FastAPI's own checks of query parameters."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
    given, expected = first.get("input"), first["msg"].removeprefix("Input should be ")
    problem = Problem(
        422, f"{field}: got {given!r:.120}, expected {expected}", field=field, given=given, expected=expected
    )
    return answer(problem, request.scope)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: "there is nothing at this address: / says what there is", 405: "not by this method: / says which"}
    response = answer(Problem(error.status_code, what.get(error.status_code, error.detail)), request.scope)
    response.headers.update(error.headers or {})
    return response
