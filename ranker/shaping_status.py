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


# name, help, label, value of each label
GAUGES: tuple[tuple[str, str, str, Callable[[State], Mapping[str, float]]], ...] = (
    ("waiting_requests", "Requests that wait", "queue", lambda state: {q: w.works for q, w in queues(state).items()}),
    (
        "waiting_tokens",
        "What waits, in tokens at the floor depth",
        "queue",
        lambda state: {queue: waiting.tokens for queue, waiting in queues(state).items()},
    ),
    (
        "oldest_seconds",
        "How long the oldest has waited",
        "queue",
        lambda state: {queue: waiting.oldest_s for queue, waiting in queues(state).items()},
    ),
    (
        "depth",
        "Candidates that the controller gives; one series at a time, of what bounds it",
        "reason",
        lambda state: {state.depth_reason.value: state.depth},
    ),
    (
        "slack_seconds",
        "How long the engine could rest with nothing late; +Inf: nothing waits",
        "",
        lambda state: {"": state.slack_s},
    ),
    ("predicted_delay_seconds", "Of a search that comes at this moment", "", lambda state: {"": state.delay_s}),
    ("cost_confidence_ratio", "In the cost model, 0 to 1", "", lambda state: {"": state.confidence}),
    ("cost_overhead_seconds", "Of a batch, by the cost model", "", lambda state: {"": state.overhead_s}),
    ("cost_token_seconds", "Of a token, by the cost model", "", lambda state: {"": state.token_s}),
)


class StateCollector(Collector):
    """Reads the state once a scrape. Until `read` is set, nothing but the names is told."""

    read: Callable[[], State] | None = None

    def collect(self) -> Iterable[Metric]:
        state = None if self.read is None else self.read()
        for name, help_, label, values in GAUGES:
            family = GaugeMetricFamily(f"penstock_shaping_{name}", help_, labels=[label] if label else [])
            if state is not None:
                for value_of, value in values(state).items():
                    family.add_metric([value_of] if label else [], value)
            yield family


SHAPING = StateCollector()
REGISTRY.register(SHAPING)
