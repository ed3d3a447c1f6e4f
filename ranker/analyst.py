"""Asks the models role to read a query, and stops waiting for one that does not answer.

A query has words even when nobody can make a vector of them. So an answer may take half of what the deadline leaves,
the other half is for a search by words alone; and after a failure nobody asks for a moment, since a role that hangs
would cost every query that half.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import grpc

from penstock.ranker.errors import ModelsAway
from penstock.ranker.redis_link import Gate
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import AnalyzeQueriesReply, AnalyzeQueriesRequest, QueryAnalysis

SHARE = 0.5  # of the time that is left
PATIENCE_S = 0.25  # no answer within so long is the role's fault


class Models(Protocol):
    """What the ranker asks of `penstock.retrieval.client.ModelsClient`."""

    def analyze(self, request: AnalyzeQueriesRequest, timeout: float) -> AnalyzeQueriesReply: ...


class Analyst:
    """Safe to share between workers. `clock` gives monotonic seconds."""

    def __init__(self, models: Models, clock: Callable[[], float]) -> None:
        self._models = models
        self._clock = clock
        self._lock = threading.Lock()  # guards the gate
        self._gate = Gate()

    def ask(self, text: str, remaining_s: float) -> QueryAnalysis:
        """One text's analysis. Raises ModelsAway; CallError where the text itself is refused."""
        with self._lock:
            if not self._gate.is_open(self._clock()):
                raise ModelsAway(self._gate.reason)
        timeout_s = SHARE * remaining_s
        try:
            reply = self._models.analyze(AnalyzeQueriesRequest(texts=(text,)), timeout_s)
        except CallError as error:
            if not error.retryable:
                raise
            # An impatient caller and a full queue say nothing about the next query.
            if error.code is grpc.StatusCode.UNAVAILABLE or (
                error.code is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s >= PATIENCE_S
            ):
                with self._lock:
                    self._gate.failed(self._clock(), str(error))
            raise ModelsAway(str(error)) from error
        with self._lock:
            self._gate.succeeded()
        return reply.analyses[0]
