"""What `penstock top` says of traffic shaping: what waits, what was put off or shed and why, how deep and why. Pure.

The metrics are those of ranker/decisions.py and ranker/shaping_status.py; docs/shaping.md has their meaning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from penstock.infra.top.reading import Reading
from penstock.infra.top.samples import Samples, grown

PREFIX = "penstock_shaping"
DECISIONS, DEPTHS = f"{PREFIX}_decisions_total", f"{PREFIX}_depths_total"
BUSY = "penstock_engine_busy_seconds_total"
CLASSES, LATE = ("INTERACTIVE", "RECOMMENDATION", "ALERT"), "LATE"


@dataclass(frozen=True, slots=True)
class Queue:
    """A class, or `late`: what could not be promised its own deadline, of which only that it waits is told.

    Rates are a second; None: not known now.
    """

    name: str
    waiting: int
    tokens: float  # of what waits, at the floor depth
    oldest_s: float
    admitted: float | None = None
    deferred: float | None = None
    shed: float | None = None  # refused, or given up since it could no longer be in time
    depth: float | None = None  # mean of what was given
    why: Mapping[str, float] | None = None  # reason -> of those deferred and shed, most first


@dataclass(frozen=True, slots=True)
class Shaping:
    """The whole ranker's."""

    queues: tuple[Queue, ...]
    depth: float  # that the controller gives
    depth_reason: str
    depth_reasons: Mapping[str, float]  # reason -> share of the requests that were given a depth, most first
    slack_s: float | None  # how long the engine could rest with nothing late; None: nothing waits
    busy: float | None  # share of the time that the engine had a forward to compute; None: there is no engine
    delay_s: float  # predicted, of a search that comes
    confidence: float  # in the cost model, 0 to 1
    overhead_s: float  # of a batch, by the cost model
    token_s: float  # of a token, likewise


def shaping(before: Reading, now: Reading) -> Shaping | None:
    """None while the ranker does not tell."""
    samples = now.metrics.get("ranker", Samples())
    depths = samples.by(f"{PREFIX}_depth", "reason")
    if not depths:
        return None
    [(reason, depth)] = depths.items()
    window = _Window(before.metrics.get("ranker"), samples, max(now.at - before.at, 1e-9))
    slack_s = _gauge(samples, "slack_seconds")
    given = window.grown(DEPTHS, "reason")
    return Shaping(
        queues=tuple(_queue(name, samples, window) for name in (*CLASSES, LATE)),
        depth=depth,
        depth_reason=reason,
        depth_reasons=_most_first({why: count / sum(given.values()) for why, count in given.items()}),
        slack_s=slack_s if math.isfinite(slack_s) else None,
        busy=window.rate(BUSY),
        delay_s=_gauge(samples, "predicted_delay_seconds"),
        confidence=_gauge(samples, "cost_confidence_ratio"),
        overhead_s=_gauge(samples, "cost_overhead_seconds"),
        token_s=_gauge(samples, "cost_token_seconds"),
    )


@dataclass(frozen=True, slots=True)
class _Window:
    before: Samples | None
    now: Samples
    seconds: float

    def grown(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """By the values of `label`, what came in between; those that did not grow are absent."""
        held = {} if self.before is None else self.before.by(name, label, **labels)
        now = self.now.by(name, label, **labels)
        more = {value: grown(held.get(value, 0.0), count) or 0.0 for value, count in now.items()}
        return {value: count for value, count in more.items() if count > 0}

    def rate(self, name: str) -> float | None:
        if self.before is None:
            return None
        more = grown(self.before.total(name), self.now.total(name))
        return None if more is None else more / self.seconds

    def mean(self, name: str, **labels: str) -> float | None:
        """Of a histogram's new values."""
        parts = (f"{name}_sum", f"{name}_count")
        held = [0.0 if self.before is None else self.before.total(part, **labels) or 0.0 for part in parts]
        has = [self.now.total(part, **labels) or 0.0 for part in parts]
        if has[1] < held[1]:  # it began anew
            held = [0.0, 0.0]
        return (has[0] - held[0]) / (has[1] - held[1]) if has[1] > held[1] else None


def _queue(name: str, samples: Samples, window: _Window) -> Queue:
    gauges = (f"{PREFIX}_{gauge}" for gauge in ("waiting_requests", "waiting_tokens", "oldest_seconds"))
    waiting, tokens, oldest_s = (samples.total(gauge, queue=name) or 0.0 for gauge in gauges)
    queue = Queue(name.lower(), int(waiting), tokens, oldest_s)
    if name == LATE or window.before is None:
        return queue
    a_second = {
        decision: count / window.seconds
        for decision, count in window.grown(DECISIONS, "decision", **{"class": name}).items()
    }
    why = {
        reason: count / window.seconds
        for decision in ("deferred", "refused")
        for reason, count in window.grown(DECISIONS, "reason", **{"class": name, "decision": decision}).items()
    }
    if expired := a_second.get("expired", 0.0):
        why["expired"] = expired
    return Queue(
        queue.name,
        queue.waiting,
        queue.tokens,
        queue.oldest_s,
        admitted=a_second.get("admitted", 0.0),
        deferred=a_second.get("deferred", 0.0),
        shed=a_second.get("refused", 0.0) + expired,
        depth=window.mean(f"{PREFIX}_depth_items", **{"class": name}),
        why=_most_first(why),
    )


def _most_first(counts: Mapping[str, float]) -> Mapping[str, float]:
    return dict(sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def _gauge(samples: Samples, name: str) -> float:
    return samples.total(f"{PREFIX}_{name}") or 0.0
