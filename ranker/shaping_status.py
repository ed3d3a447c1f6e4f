"""The shaper's state as others read it: numbers of the role's status, and gauges for Prometheus. Pure but for who asks.

A queue is a class's, or LATE: what could not be promised its own deadline, of whatever class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.ranker.shaping.work import State, Waiting
from penstock.schemas.events import RankClass

CLASSES = (RankClass.INTERACTIVE, RankClass.RECOMMENDATION, RankClass.ALERT)
LATE = "LATE"


def queues(state: State) -> Mapping[str, Waiting]:
    """By name, people's first."""
    empty = Waiting(0, 0.0, 0.0)
    return {**{class_.value: state.queues.get(class_, empty) for class_ in CLASSES}, LATE: state.late}


def numbers(state: State) -> dict[str, float]:
    """For RoleStatus. `slack_seconds` is absent while nothing waits: then nothing can be late."""
    found: dict[str, float] = {}
    for name, waiting in queues(state).items():
        queue = f"queue_{name.lower()}"
        found |= {queue: float(waiting.works), f"{queue}_tokens": waiting.tokens}
        found[f"{queue}_oldest_seconds"] = waiting.oldest_s
    found |= {
        "predicted_delay_seconds": state.delay_s,
        "shaping_depth": state.depth,
        "cost_confidence": state.confidence,
        "cost_overhead_seconds": state.overhead_s,
        "cost_token_seconds": state.token_s,
    }
    if math.isfinite(state.slack_s):
        found["slack_seconds"] = state.slack_s
    for decision in ("admitted", "deferred", "expired"):
        counts: Mapping[RankClass, int] = getattr(state, decision)
        found |= {f"{decision}_{class_.value.lower()}_total": float(counts.get(class_, 0)) for class_ in CLASSES}
    return found | {f"refused_{why.value}_total": float(count) for why, count in state.refused.items()}


def families(state: State) -> Iterable[Metric]:
    """One moment's gauges. Depth has the reason for a label: one series at a time."""
    waiting = queues(state)
    for name, help_, of in (
        ("waiting_requests", "Requests that wait", lambda each: each.works),
        ("waiting_tokens", "What waits, in tokens at the floor depth", lambda each: each.tokens),
        ("oldest_seconds", "How long the oldest has waited", lambda each: each.oldest_s),
    ):
        family = GaugeMetricFamily(f"penstock_shaping_{name}", help_, labels=["queue"])
        for queue, each in waiting.items():
            family.add_metric([queue], of(each))
        yield family
    depth = GaugeMetricFamily("penstock_shaping_depth", "Candidates that the controller gives", labels=["reason"])
    depth.add_metric([state.depth_reason.value], state.depth)
    yield depth
    for name, help_, value in (
        ("slack_seconds", "How long the engine could rest with nothing late; +Inf: nothing waits", state.slack_s),
        ("predicted_delay_seconds", "Of a search that comes at this moment", state.delay_s),
        ("cost_confidence_ratio", "In the cost model, 0 to 1", state.confidence),
        ("cost_overhead_seconds", "Of a batch, by the cost model", state.overhead_s),
        ("cost_token_seconds", "Of a token, by the cost model", state.token_s),
    ):
        yield GaugeMetricFamily(f"penstock_shaping_{name}", help_, value=value)


class StateCollector(Collector):
    """Reads the state at every scrape, once. `read` may be set anew; nothing is told before."""

    read: Callable[[], State] | None = None

    def collect(self) -> Iterable[Metric]:
        return () if self.read is None else families(self.read())


SHAPING = StateCollector()
REGISTRY.register(SHAPING)
