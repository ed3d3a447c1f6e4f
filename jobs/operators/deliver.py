"""The keyed operator of the alerts job: what each person is told, around `alert_state`'s decisions.

One packed value of state per person. The daily caps are claimed from the ledger between weighing and sending, so that
everything that could silence an alert is looked at when it leaves. While Redis is away this waits, and after a while
fails over: late, never wrong. Side output: what the ranker should score.

Where it stands: life-of-an-alert.md, step 9.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from pyflink.common import Types
from pyflink.datastream import OutputTag
from pyflink.datastream.functions import KeyedCoProcessFunction, RuntimeContext
from pyflink.datastream.state import ValueStateDescriptor

from penstock.infra.settings import Settings
from penstock.jobs.operators import alert_state, ledger
from penstock.jobs.operators.alert_state import Ask, Rules, Send, Wait
from penstock.jobs.operators.kafka import KEY_AND_VALUE, keyed_bytes
from penstock.jobs.operators.metrics import Freshness, counters
from penstock.jobs.operators.percolate import Keyed
from penstock.jobs.operators.subscription_state import SubscriptionArrival
from penstock.jobs.operators.worker import begin, passed
from penstock.schemas.framing import topic_codec
from penstock.schemas.states import Candidate, PersonAlerts, Subject
from penstock.schemas.topics import ALERTS, RANK_REQUESTS
from penstock.schemas.wire import codec

QUESTIONS = OutputTag("rank-requests", KEY_AND_VALUE)
LEDGER_PATIENCE_S = 10.0

COUNTED = (
    "alerted",
    "asked",
    "unscored",
    "matches_unnamed",
    "waiting",
    "expired",
    "repeat",
    "unsubscribed",
    "paused",
    "snoozed",
    "superseded",
    "below_min_score",
    "over_cap",
    "subscription_over_cap",
    "subscription_known",
    "subscription_repeat",
    "subscription_stale",
)


class Deliver(KeyedCoProcessFunction):  # type: ignore[misc]  # pyflink carries no types
    """Input 1: candidates; input 2: subscriptions. Output: alerts as (key bytes, value bytes)."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        alerts = settings.alerts
        self._rules = Rules(
            max_per_day=alerts.max_per_day,
            dedupe_ms=alerts.dedupe_ms,
            rank_deadline_ms=alerts.rank_deadline_ms,
            digest_deadline_ms=alerts.digest_deadline_ms,
            window_ms=settings.postings.tombstone_window_ms,
        )

    def open(self, runtime_context: RuntimeContext) -> None:
        self._state = runtime_context.get_state(ValueStateDescriptor("person", Types.PRIMITIVE_ARRAY(Types.BYTE())))
        self._packed = codec(PersonAlerts)
        self._candidates = codec(Candidate)
        registry = self._settings.kafka.schema_registry
        self._alerts = topic_codec(ALERTS, registry)
        self._requests = topic_codec(RANK_REQUESTS, registry)
        redis = self._settings.redis
        self._ledger = ledger.Ledger(ledger.connect(redis), redis.prefix, LEDGER_PATIENCE_S)
        self._subject: tuple[bytes, Subject] | None = None
        group = begin(runtime_context, self._settings)
        self._counters = counters(group, "alerts", COUNTED)
        self._freshness = Freshness(group, "alerted")

    def close(self) -> None:
        self._ledger.close()

    def process_element1(self, value: Keyed, ctx: KeyedCoProcessFunction.Context) -> Iterator[Any]:
        held = self._held()
        candidate = self._candidates.decode_unbounded(value[1])
        state, out = self._decide(held, candidate, None, ctx)
        self._keep(held, state, ctx)
        yield from out

    def process_element2(self, value: SubscriptionArrival, ctx: KeyedCoProcessFunction.Context) -> Iterator[Any]:
        held = self._held()
        state, counted = alert_state.on_subscription(held, value.subscription, _now_ms(), self._rules)
        self._count(counted)
        state, out = self._again(state, ctx)
        self._keep(held, state, ctx)
        yield from out

    def on_timer(self, timestamp: int, ctx: KeyedCoProcessFunction.OnTimerContext) -> Iterator[Any]:
        held = self._held()
        state, out = self._again(held, ctx)
        self._keep(held, state, ctx)
        yield from out

    def _again(self, state: PersonAlerts, ctx: Any) -> tuple[PersonAlerts, list[Any]]:
        """Weigh once more what waited for its subscription."""
        state, waiting = alert_state.release(state)
        out: list[Any] = []
        for each in waiting:
            state, more = self._decide(state, each.candidate, each.until, ctx)
            out += more
        return state, out

    def _decide(
        self, state: PersonAlerts, candidate: Candidate, until: int | None, ctx: Any
    ) -> tuple[PersonAlerts, list[Any]]:
        """The way of one candidate: weighed, granted by the ledger, settled; again for its other matches."""
        subject, full, began = self._read(candidate.subject), frozenset[str](), _now_ms()
        while True:
            verdict = alert_state.weigh(state, candidate, subject, _now_ms(), self._rules, until=until, full=full)
            self._count(verdict.counted)
            state, act = verdict.state, verdict.act
            if isinstance(act, Wait):
                if until is None:
                    self._count(("waiting",))
                    ctx.timer_service().register_processing_time_timer(act.until)
                return alert_state.keep_waiting(state, candidate, act.until), []
            if isinstance(act, Ask):
                row = keyed_bytes(RANK_REQUESTS.key(act.request), self._requests.encode(act.request))
                return state, [(QUESTIONS, row)]
            if not isinstance(act, Send):
                return state, []
            grant = self._ledger.claim(act.claim)
            state, alert, counted = alert_state.settle(state, act, grant, candidate, subject, _now_ms(), self._rules)
            self._count(counted)
            if alert is not None:
                alert = passed(alert, "alerts.deliver", began)
                self._freshness.observe(alert.produced_at, alert.alerted_at)
                return state, [keyed_bytes(ALERTS.key(alert), self._alerts.encode(alert))]
            if not act.more or not grant.person:
                return state, []
            full |= grant.full

    def _read(self, packed: bytes) -> Subject:
        """The posting; of all its persons, who mostly come one after another, the first decodes it."""
        if self._subject is None or self._subject[0] != packed:
            self._subject = (packed, codec(Subject).decode_unbounded(packed))
        return self._subject[1]

    def _held(self) -> PersonAlerts:
        packed = self._state.value()
        return alert_state.EMPTY if packed is None else self._packed.decode_unbounded(bytes(packed))

    def _keep(self, held: PersonAlerts, state: PersonAlerts, ctx: Any) -> None:
        if state is held and state.prune_at is None:
            return
        tidied = alert_state.tidy(state, _now_ms())
        if tidied.prune_at is not None and tidied.prune_at != held.prune_at:
            ctx.timer_service().register_processing_time_timer(tidied.prune_at)
        if alert_state.is_empty(tidied):
            self._state.clear()
        elif tidied is not held:
            self._state.update(self._packed.encode_unbounded(tidied))

    def _count(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._counters[name].inc()


def _now_ms() -> int:
    return int(time.time() * 1000)
