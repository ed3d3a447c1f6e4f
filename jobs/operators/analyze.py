"""Understanding and embedding of queries on their way to the ranker, with the same care for time as `enrich`.

Where it stands: life-of-a-query.md, step 3.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from pyflink.common import Row
from pyflink.datastream.functions import AsyncFunction, RuntimeContext

from penstock.infra.settings import Settings
from penstock.jobs.operators.enrich import Batcher, Breaker, Rejected, Unavailable
from penstock.jobs.operators.kafka import keyed_bytes
from penstock.jobs.operators.metrics import counters
from penstock.jobs.operators.worker import begin, passed
from penstock.retrieval.client import AsyncModelsClient
from penstock.schemas.events import RankQuery, RankRequest, SearchQuery
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import AnalyzeQueriesRequest, QueryAnalysis
from penstock.schemas.topics import RANK_REQUESTS

BATCH = 16
CONCURRENCY = 4
COUNTED = ("analyzed", "sent_without_analysis")


def request_of(query: SearchQuery, produced_at: int, analysis: QueryAnalysis | None) -> RankRequest:
    """The rank request of a query. `produced_at` in epoch ms; without an analysis the ranker makes its own."""
    return RankRequest(
        request_id=query.request_id,
        tenant=query.tenant,
        class_=query.class_,
        deadline=produced_at + query.deadline_ms,
        query=RankQuery(
            text=query.text,
            vector=analysis.vector if analysis is not None else None,
            filters=query.filters,
            understood=analysis.understood if analysis is not None else (),
            person_id=query.person_id,
        ),
        page=query.page,
        min_version=query.min_version,
        produced_at=produced_at,
        trace=query.trace,
    )


def words_batcher(models_address: str, timeout_ms: int, concurrency: int) -> Batcher[str, QueryAnalysis]:
    """Has the models role read words, BATCH texts a call. Make it on the event loop that runs the calls."""
    timeout_s = timeout_ms / 1000
    client = AsyncModelsClient(models_address)

    async def call(texts: Sequence[str]) -> Sequence[QueryAnalysis]:
        try:
            return (await client.analyze(AnalyzeQueriesRequest(texts=tuple(texts)), timeout_s)).analyses
        except CallError as error:
            raise (Unavailable if error.retryable else Rejected)(str(error)) from error

    return Batcher(call, batch=BATCH, concurrency=concurrency, timeout_s=timeout_s, breaker=Breaker())


class Analyze(AsyncFunction):  # type: ignore[misc]  # pyflink carries no types
    """(SearchQuery, produced_at) -> the rank request as (key bytes, value bytes). Never raises, never drops."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._batcher: Batcher[str, QueryAnalysis] | None = None

    def open(self, runtime_context: RuntimeContext) -> None:
        counted = counters(begin(runtime_context, self._settings), "queries", COUNTED)
        self._analyzed, self._without = (counted[name] for name in COUNTED)
        self._codec = topic_codec(RANK_REQUESTS, self._settings.kafka.schema_registry)

    async def async_invoke(self, value: tuple[SearchQuery, int]) -> list[Row]:
        query, produced_at = value
        began = time.time() * 1000
        try:
            analysis = await self._asked().ask(query.text)
            self._analyzed.inc()
        except Unavailable:
            analysis = None
            self._without.inc()
        request = passed(request_of(query, produced_at, analysis), "queries.analyze", began)
        return [keyed_bytes(RANK_REQUESTS.key(request), self._codec.encode(request))]

    def _asked(self) -> Batcher[str, QueryAnalysis]:
        """The batcher, made on the event loop that runs the calls."""
        if self._batcher is None:
            address, timeout_ms = self._settings.models.dial, self._settings.queries.analyze_timeout_ms
            self._batcher = words_batcher(address, timeout_ms, CONCURRENCY)
        return self._batcher
