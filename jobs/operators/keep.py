"""The keyed operator of the postings job: the only writer of index updates, around `posting_state`'s decisions.

One packed value of state per posting id, read once and written once an event. Side outputs: what the slow lane should
enrich, and what had to be refused.

Where it stands: life-of-a-posting.md, step 5.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from pyflink.common import Types
from pyflink.datastream import OutputTag
from pyflink.datastream.functions import KeyedCoProcessFunction, RuntimeContext
from pyflink.datastream.state import ValueStateDescriptor

from penstock.infra.settings import Settings
from penstock.jobs.operators import posting_state
from penstock.jobs.operators.intake import DEAD_LETTERS, dead_letter_row
from penstock.jobs.operators.kafka import KEY_AND_VALUE, keyed_bytes
from penstock.jobs.operators.metrics import Freshness, counters
from penstock.jobs.operators.packed import Packed
from penstock.jobs.operators.posting_state import Arrival, Refusal, Transition
from penstock.jobs.operators.worker import begin, passed
from penstock.schemas.dead_letters import dead_letter
from penstock.schemas.events import EnrichedPosting, IndexUpdate
from penstock.schemas.framing import topic_codec
from penstock.schemas.states import PostingState
from penstock.schemas.topics import ENRICH, INDEX, POSTINGS
from penstock.schemas.wire import codec

ENRICH_REQUESTS = OutputTag("enrich-requests", KEY_AND_VALUE)

COUNTED = (
    "published",
    "without_vector",
    "deleted",
    "expired",
    "stale",
    "repeat",
    "healed",
    "refused",
    "refined",
    "void_answer",
    "repeated_answer",
    "forgotten",
)


class Keep(KeyedCoProcessFunction):  # type: ignore[misc]  # pyflink carries no types
    """Input 1: arrivals; input 2: the slow lane's answers. Output: index updates as (key bytes, value bytes)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._window_ms = settings.postings.tombstone_window_ms

    def open(self, runtime_context: RuntimeContext) -> None:
        self._updates = topic_codec(INDEX, self._settings.kafka.schema_registry)
        self._requests = topic_codec(ENRICH, self._settings.kafka.schema_registry)
        group = begin(runtime_context, self._settings)
        state = runtime_context.get_state(ValueStateDescriptor("posting", Types.PICKLED_BYTE_ARRAY()))
        self._postings = Packed(state, codec(PostingState), counters(group, "postings", COUNTED))
        self._freshness = Freshness(group, "enriched")

    def process_element1(self, value: Arrival, ctx: KeyedCoProcessFunction.Context) -> Iterator[Any]:
        now = _now_ms()
        held = self._postings.read()
        yield from self._become(held, posting_state.on_posting(held, value, now, self._window_ms), ctx, now)

    def process_element2(self, value: EnrichedPosting, ctx: KeyedCoProcessFunction.Context) -> Iterator[Any]:
        held = self._postings.read()
        yield from self._become(held, posting_state.on_enriched(held, value), ctx, _now_ms())

    def on_timer(self, timestamp: int, ctx: KeyedCoProcessFunction.OnTimerContext) -> Iterator[Any]:
        now = _now_ms()
        held = self._postings.read()
        yield from self._become(held, posting_state.on_timer(held, now, self._window_ms), ctx, now)

    def _become(
        self, held: PostingState | None, transition: Transition, ctx: KeyedCoProcessFunction.Context, now_ms: int
    ) -> Iterator[Any]:
        self._postings.become(held, transition, ctx)
        trace = None
        if transition.update is not None:
            update = passed(transition.update, "postings.keep", now_ms, revision=transition.update.revision)
            trace = update.trace
            if _first_vector(held, update):
                self._freshness.observe(update.produced_at, now_ms)
            yield keyed_bytes(update.posting_id, self._updates.encode(update))
        if transition.request is not None:
            request = replace(transition.request, trace=trace or transition.request.trace)
            yield ENRICH_REQUESTS, keyed_bytes(request.posting_id, self._requests.encode(request))
        if transition.refusal is not None:
            yield DEAD_LETTERS, _letter(transition.refusal, now_ms)


def _letter(refusal: Refusal, now_ms: int) -> Any:
    arrival = refusal.arrival
    return dead_letter_row(
        dead_letter(
            POSTINGS,
            key=arrival.posting.posting_id.encode("utf-8"),
            raw=arrival.raw,
            stage="order",
            error=refusal.error,
            produced_at=arrival.produced_at,
            failed_at=now_ms,
            trace=arrival.posting.trace,
        )
    )


def _first_vector(held: PostingState | None, update: IndexUpdate) -> bool:
    """Whether with this update the version can be found by meaning, and could not before."""
    before = held.update if held is not None and held.update.version == update.version else None
    return update.vector is not None and (before is None or before.vector is None)


def _now_ms() -> int:
    return int(time.time() * 1000)
