"""What becomes of a subscription: how it turns into a standing query, as functions of plain values.

State of one id, the thing that happened, the time -> the next state and what leaves the operator. No Flink, no clock.

Invariants, for any order, repetition and interleaving of an id's events:
- the last standing query emitted belongs to the highest accepted version whose words could be read;
- versions never fall from one emitted standing query to the next;
- words that nobody could read are never percolated as if there were none: that would match every posting.

Where it stands: life-of-an-alert.md, step 3.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from penstock.schemas import filters
from penstock.schemas.errors import InvalidRecord
from penstock.schemas.events import (
    Filter,
    FilterKind,
    Op,
    StandingQuery,
    Subscription,
    SubscriptionState,
    Understood,
)
from penstock.schemas.rpc import QueryAnalysis
from penstock.schemas.states import HeldSubscription

FIRST_PAUSE_MS, LONGEST_PAUSE_MS = 1_000, 30_000


@dataclass(frozen=True, slots=True)
class SubscriptionArrival:
    """A valid subscription event on its way to the keyed operator, with what the models role read in its words."""

    subscription: Subscription
    raw: bytes  # the record as it came, for a dead letter
    produced_at: int  # its Kafka timestamp, epoch ms
    event_hash: bytes
    analysis: QueryAnalysis | None = None  # None: not needed, or not to be had now


@dataclass(frozen=True, slots=True)
class SubscriptionTransition:
    """The outcome of one event, timer or answer. `counted` names what was dropped and why, for the metrics."""

    state: HeldSubscription | None
    query: StandingQuery | None = None
    refusal: InvalidRecord | None = None
    wake_at: int | None = None  # processing-time timer to arm, epoch ms
    ask: bool = False  # the models role is to be asked now; `on_analysis` takes its answer
    counted: tuple[str, ...] = field(default=())


def needs_words_read(event: Subscription) -> bool:
    """Whether the models role has anything to do for it."""
    return event.op is Op.UPSERT and event.state is not SubscriptionState.PAUSED and bool(event.text.strip())


def on_subscription(
    state: HeldSubscription | None, arrival: SubscriptionArrival, now_ms: int, threshold: float, window_ms: int
) -> SubscriptionTransition:
    """A subscription event reaches its key. `window_ms` is how long a deleted one keeps its version."""
    event = arrival.subscription
    if state is not None:
        held = state.subscription
        if (event.tenant, event.person_id) != (held.tenant, held.person_id):
            owner = f"tenant {held.tenant!r}, person {held.person_id!r}, to whom {event.subscription_id!r} belongs"
            field_, given = ("tenant", event.tenant) if event.tenant != held.tenant else ("person_id", event.person_id)
            return SubscriptionTransition(state, refusal=InvalidRecord(field_, given, owner), counted=("refused",))
        if event.version < held.version:
            return SubscriptionTransition(state, counted=("stale",))
        if event.version == held.version:
            return _same_version(state, arrival, now_ms, threshold)
    fresh = HeldSubscription(
        subscription=event,
        event_hash=arrival.event_hash,
        produced_at=arrival.produced_at,
        clear_at=now_ms + window_ms if event.op is Op.DELETE else None,
    )
    if needs_words_read(event):
        return on_analysis(fresh, arrival.analysis, now_ms, threshold)
    if event.op is Op.DELETE or event.state is SubscriptionState.PAUSED:
        why = "deleted" if event.op is Op.DELETE else "paused"
        return SubscriptionTransition(fresh, _standing(fresh, Op.DELETE), wake_at=fresh.clear_at, counted=(why,))
    query = replace(_standing(fresh, Op.UPSERT), filters=event.filters)
    return SubscriptionTransition(fresh, query, counted=("published",))


def on_analysis(
    state: HeldSubscription, analysis: QueryAnalysis | None, now_ms: int, threshold: float
) -> SubscriptionTransition:
    """What the models role read in the words of the held subscription, or None: it could not be asked."""
    if analysis is None:
        ask_at = now_ms + min(FIRST_PAUSE_MS << min(state.attempts, 16), LONGEST_PAUSE_MS)
        later = replace(state, attempts=state.attempts + 1, ask_at=ask_at)
        return SubscriptionTransition(later, wake_at=ask_at, counted=("words_not_read_yet",))
    settled = replace(state, attempts=0, ask_at=None)
    if analysis.vector is None:
        error = InvalidRecord("text", state.subscription.text, "words that an encoder can read: this one takes no part")
        return SubscriptionTransition(settled, _standing(settled, Op.DELETE), refusal=error, counted=("unreadable",))
    query = replace(
        _standing(settled, Op.UPSERT),
        text=state.subscription.text,
        vector=analysis.vector,
        filters=compiled(state.subscription.filters, analysis.understood),
        threshold=threshold,
    )
    return SubscriptionTransition(settled, query, counted=("published",))


def on_timer(state: HeldSubscription | None, now_ms: int) -> SubscriptionTransition:
    """A timer fires. It may be an old one, or early: only the state and the clock decide."""
    if state is None:
        return SubscriptionTransition(None)
    if state.clear_at is not None:
        if now_ms >= state.clear_at:
            return SubscriptionTransition(None, counted=("forgotten",))
        return SubscriptionTransition(state, wake_at=state.clear_at)
    if state.ask_at is None:
        return SubscriptionTransition(state)
    if now_ms < state.ask_at:
        return SubscriptionTransition(state, wake_at=state.ask_at)
    return SubscriptionTransition(state, ask=True)


def compiled(own: Filter | None, understood: tuple[Understood, ...]) -> Filter | None:
    """The subscription's filters and what its words say, as one tree.

    What the words say excludes known violations only. Places are among it whatever the index holds today (a search
    asks; the ranker's strictness.py): a standing query is about postings to come. Too large a tree is the own alone.
    """
    given = own.children if own is not None and own.kind is FilterKind.ALL else (own,)
    tree = filters.all_of(*given, *(one.filter for one in understood if one.applied))
    if tree is None or not understood:
        return own
    try:
        filters.check(tree)
    except InvalidRecord:
        return own
    return tree


# --- how ---------------------------------------------------------------------------------------------------------


def _same_version(
    state: HeldSubscription, arrival: SubscriptionArrival, now_ms: int, threshold: float
) -> SubscriptionTransition:
    if arrival.event_hash != state.event_hash:
        error = InvalidRecord(
            "version",
            arrival.subscription.version,
            "a higher version: this one was published before with different content, which stands",
        )
        return SubscriptionTransition(state, refusal=error, counted=("refused",))
    if state.ask_at is None or arrival.analysis is None:
        return SubscriptionTransition(state, counted=("repeat",))
    healed = on_analysis(state, arrival.analysis, now_ms, threshold)
    return replace(healed, counted=("repeat", *healed.counted))


def _standing(state: HeldSubscription, op: Op) -> StandingQuery:
    event = state.subscription
    return StandingQuery(
        subscription_id=event.subscription_id,
        version=event.version,
        op=op,
        tenant=event.tenant,
        person_id=event.person_id,
        min_score=event.min_score if op is Op.UPSERT else None,
        produced_at=state.produced_at,
        trace=event.trace,
    )
