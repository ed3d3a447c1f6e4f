"""Around every request: an id, a trace, a bound on its body, a measurement, and an answer even when all else fails.

Plain ASGI, outermost first: Observed, then BodyLimit. Neither buffers, so that streams stay streams.
"""

from __future__ import annotations

import time
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from penstock.infra.gateway import metrics
from penstock.infra.gateway.errors import Problem
from penstock.infra.gateway.records import ErrorAnswer, ErrorBody
from penstock.infra.gateway.trace import request_id, traceparent
from penstock.schemas import jsonl

log = structlog.get_logger(role="gateway")

CLIENT_LEFT = 499  # nobody reads it; it is what the metrics call a caller who went away


def header(scope: Scope, name: bytes) -> str | None:
    for key, value in scope["headers"]:
        if key == name:
            text: str = value.decode("latin-1")
            return text
    return None


def answer(problem: Problem, scope: MutableMapping[str, Any]) -> JSONResponse:
    """The one shape of every error."""
    given = problem.given
    body = ErrorBody(
        message=problem.message,
        request_id=scope["state"]["request_id"],
        field=problem.field,
        given=None if given is None else str(given),
        expected=problem.expected,
    )
    headers = {} if problem.retry_s is None else {"Retry-After": str(problem.retry_s)}
    if problem.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(jsonl.to_json(ErrorAnswer(error=body)), problem.status, headers)


class Observed:
    """Gives each request its ids, writes them into its answer, counts and times it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id(header(scope, b"x-request-id"))
        state["trace"] = traceparent(header(scope, b"traceparent"))
        began = time.perf_counter()
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", state["request_id"].encode("latin-1")),
                    (b"traceparent", state["trace"].encode("latin-1")),
                ]
                metrics.SECONDS.labels(_route(scope)).observe(time.perf_counter() - began)
            await send(message)

        ids = {"request_id": state["request_id"], "trace_id": state["trace"].split("-")[1]}
        try:
            with bound_contextvars(**ids):
                await self._app(scope, receive, observed)
        except ClientDisconnect:
            status = status or CLIENT_LEFT
        except Exception as error:  # the caller learns that it is our fault, the log learns why
            log.exception("a request broke the gateway", path=scope["path"], **ids)
            if status:
                raise
            problem = Problem(500, "the gateway failed: its log says why, under this request_id")
            await answer(problem, scope)(scope, receive, observed)
            del error
        finally:
            metrics.REQUESTS.labels(_route(scope), _method(scope), str(status or CLIENT_LEFT)).inc()


def _route(scope: Scope) -> str:
    """The route's own path, never the caller's: a label must not grow with what people ask for."""
    return getattr(scope.get("route"), "path_format", "none")


def _method(scope: Scope) -> str:
    known = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
    return scope["method"] if scope["method"] in known else "other"


class BodyLimit:
    """No body is longer than `limit` bytes, whether it says its length or comes in chunks."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        said = header(scope, b"content-length")
        if said is not None and (not said.isdecimal() or int(said) > self._limit):
            await answer(self._too_much(f"{said} bytes"), scope)(scope, receive, send)
            return
        got = 0

        async def bounded() -> Message:
            nonlocal got
            message = await receive()
            if message["type"] == "http.request":
                got += len(message.get("body", b""))
                if got > self._limit:
                    raise self._too_much(f"more than {self._limit} bytes")
            return message

        await self._app(scope, bounded, send)

    def _too_much(self, given: str) -> Problem:
        expected = f"at most {self._limit} bytes (gateway.max_body_bytes)"
        return Problem(413, f"body: got {given}, expected {expected}", field="body", given=given, expected=expected)
