"""Subscriptions become standing queries: words read in batches, then one keyed writer, around `subscription_state`.

While the models role is away nothing is lost and nobody waits: a subscription whose words nobody has read yet is kept,
and its key's timer asks again with growing pauses. Deleted and paused ones need nobody.

Where it stands: life-of-an-alert.md, step 3.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pyflink.common import Types
from pyflink.datastream.functions import AsyncFunction, KeyedProcessFunction, RuntimeContext
from pyflink.datastream.state import ValueStateDescriptor

from penstock.infra.settings import Settings
from penstock.jobs.operators import subscription_state
from penstock.jobs.operators.analyze import words_batcher
from penstock.jobs.operators.enrich import Batcher, Unavailable
from penstock.jobs.operators.intake import DEAD_LETTERS, MAX_QUERY_RECORD_BYTES, dead_letter_row
from penstock.jobs.operators.kafka import keyed_bytes
from penstock.jobs.operators.metrics import counters
from penstock.jobs.operators.packed import Packed
from penstock.jobs.operators.subscription_state import SubscriptionArrival, SubscriptionTransition
from penstock.jobs.operators.worker import begin
from penstock.retrieval.client import ModelsClient
from penstock.schemas import validate
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.errors import InvalidRecord, OversizedRecord
from penstock.schemas.events import StandingQuery, Subscription
from penstock.schemas.framing import topic_codec
from penstock.schemas.grpc_avro import CallError
from penstock.schemas.rpc import AnalyzeQueriesRequest, QueryAnalysis
from penstock.schemas.states import HeldSubscription
from penstock.schemas.topics import STANDING_QUERIES, SUBSCRIPTIONS
from penstock.schemas.wire import codec

CONCURRENCY = 2
LEFT_ALONE_S = 1.0  # after a call that failed, this long no timer asks: keys do not queue up behind a dead server

COUNTED = (
    "published",
    "paused",
    "deleted",
    "stale",
    "repeat",
    "refused",
    "words_not_read_yet",
    "unreadable",
    "forgotten",
)


def check_subscription(
    event: Subscription, raw: bytes, produced_at: int, now_ms: int, settings: Settings
) -> SubscriptionArrival:
    """A subscription that keeps the rules, as the operators take it."""
    if len(raw) > MAX_QUERY_RECORD_BYTES:
        raise OversizedRecord(
            f"{len(raw)} bytes, at most {MAX_QUERY_RECORD_BYTES} in a subscription: fewer values in its filters"
        )
    validate.check_subscription(event)
    return SubscriptionArrival(event, raw, produced_at, validate.event_hash(event))


class ReadWords(AsyncFunction):  # type: ignore[misc]  # pyflink carries no types
    """SubscriptionArrival -> the same with its words read, or without in time. Never raises, never drops."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._batcher: Batcher[str, QueryAnalysis] | None = None

    async def async_invoke(self, value: SubscriptionArrival) -> list[SubscriptionArrival]:
        if not subscription_state.needs_words_read(value.subscription):
            return [value]
        try:
            return [replace(value, analysis=await self._asked().ask(value.subscription.text))]
        except Unavailable:  # the keyed operator keeps it, counts it and asks again
            return [value]

    def _asked(self) -> Batcher[str, QueryAnalysis]:
        """The batcher, made on the event loop that runs the calls."""
        if self._batcher is None:
            address, timeout_ms = self._settings.models.dial, self._settings.alerts.analyze_timeout_ms
            self._batcher = words_batcher(address, timeout_ms, CONCURRENCY)
        return self._batcher


class KeepSubscriptions(KeyedProcessFunction):  # type: ignore[misc]  # pyflink carries no types
    """Keyed by subscription_id: the only writer of standing queries, as (key bytes, value bytes)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._threshold = settings.alerts.threshold
        self._window_ms = settings.postings.tombstone_window_ms
        self._models: ModelsClient | None = None
        self._ask_from = 0.0  # monotonic seconds

    def open(self, runtime_context: RuntimeContext) -> None:
        self._queries = topic_codec(STANDING_QUERIES, self._settings.kafka.schema_registry)
        counted = counters(begin(runtime_context, self._settings), "subscriptions", COUNTED)
        descriptor = ValueStateDescriptor("subscription", Types.PRIMITIVE_ARRAY(Types.BYTE()))
        self._subscriptions = Packed(runtime_context.get_state(descriptor), codec(HeldSubscription), counted)

    def close(self) -> None:
        if self._models is not None:
            self._models.close()

    def process_element(self, value: SubscriptionArrival, ctx: KeyedProcessFunction.Context) -> Iterator[Any]:
        now, held = _now_ms(), self._subscriptions.read()
        transition = subscription_state.on_subscription(held, value, now, self._threshold, self._window_ms)
        yield from self._become(held, transition, ctx, now, value.raw, value.produced_at)

    def on_timer(self, timestamp: int, ctx: KeyedProcessFunction.OnTimerContext) -> Iterator[Any]:
        now, held = _now_ms(), self._subscriptions.read()
        transition = subscription_state.on_timer(held, now)
        if transition.ask and held is not None:
            analysis = self._ask(held.subscription.text)
            transition = subscription_state.on_analysis(held, analysis, now, self._threshold)
        yield from self._become(held, transition, ctx, now, None, None)

    def _ask(self, text: str) -> QueryAnalysis | None:
        if time.monotonic() < self._ask_from:
            return None
        if self._models is None:
            self._models = ModelsClient(self._settings.models.dial)
        try:
            timeout_s = self._settings.alerts.analyze_timeout_ms / 1000
            return self._models.analyze(AnalyzeQueriesRequest(texts=(text,)), timeout_s).analyses[0]
        except CallError:  # counted as words_not_read_yet
            self._ask_from = time.monotonic() + LEFT_ALONE_S
            return None

    def _become(
        self,
        held: HeldSubscription | None,
        transition: SubscriptionTransition,
        ctx: KeyedProcessFunction.Context,
        now_ms: int,
        raw: bytes | None,
        produced_at: int | None,
    ) -> Iterator[Any]:
        self._subscriptions.become(held, transition, ctx)
        if transition.query is not None:
            yield self._row(transition.query)
        if transition.refusal is not None and transition.state is not None:
            event = transition.state.subscription
            if raw is None:  # refused by a timer's answer, long after its record came
                raw, produced_at = codec(Subscription).encode(event), transition.state.produced_at
            yield DEAD_LETTERS, _letter(event.subscription_id, raw, produced_at, transition.refusal, now_ms)

    def _row(self, query: StandingQuery) -> Any:
        return keyed_bytes(STANDING_QUERIES.key(query), self._queries.encode(query))


def _letter(key: str, raw: bytes, produced_at: int | None, error: InvalidRecord, now_ms: int) -> Any:
    return dead_letter_row(
        dead_letter(
            SUBSCRIPTIONS,
            key=key.encode("utf-8"),
            raw=raw,
            stage="order" if error.field != "text" else "validate",
            error=error,
            produced_at=produced_at,
            failed_at=now_ms,
        )
    )


def _now_ms() -> int:
    return int(time.time() * 1000)
