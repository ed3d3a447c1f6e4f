"""Rank over gRPC: one request and its result. Many of them over one call: rank_streams.py.

A caller that goes away takes its request with it, and none waits longer than it said, in its request or of its call.

Where it stands: life-of-a-query.md, step 4.
"""

from __future__ import annotations

from collections.abc import Callable

import grpc

from penstock.ranker.errors import CallerLeft, QueueClosed, QueueFull, RankFailed
from penstock.ranker.job import Job
from penstock.ranker.service import RankService
from penstock.schemas.events import RankRequest, RankResult
from penstock.schemas.grpc_avro import CallError, NotReady, Refused

Check = Callable[[RankRequest], None]  # raises InvalidRecord


def rank_handler(
    service: RankService, check: Check, now_ms: Callable[[], int]
) -> Callable[[RankRequest, grpc.ServicerContext], RankResult]:
    """The handler of Ranker.RANK. `now_ms` gives epoch milliseconds."""

    def rank(request: RankRequest, context: grpc.ServicerContext) -> RankResult:
        check(request)
        job = Job(request, deadline_ms(request, context, now_ms()))
        try:
            service.submit(job)
        except QueueFull as error:
            raise Refused(str(error), error.retry_after_s, tenant=error.tenant) from error
        except QueueClosed as error:
            raise NotReady(str(error)) from error
        if not context.add_callback(lambda: service.leave(job)):
            service.leave(job)
        try:
            return job.future.result()
        except QueueClosed as error:
            raise NotReady(str(error)) from error
        except CallerLeft as error:
            context.abort(grpc.StatusCode.CANCELLED, str(error))
        except RankFailed as error:
            context.abort(_code(error), str(error))
        raise AssertionError("abort returned")  # it never does

    return rank


def deadline_ms(request: RankRequest, context: grpc.ServicerContext, now_ms: int) -> int:
    """The request's deadline, or that of the call if it is sooner, in epoch milliseconds."""
    remaining_s = context.time_remaining()
    return request.deadline if remaining_s is None else min(request.deadline, now_ms + int(remaining_s * 1000))


def _code(error: RankFailed) -> grpc.StatusCode:
    """What a role behind the ranker said, or that the ranker itself broke."""
    if isinstance(error.cause, CallError):
        return grpc.StatusCode.UNAVAILABLE if error.cause.retryable else error.cause.code
    return grpc.StatusCode.INTERNAL
