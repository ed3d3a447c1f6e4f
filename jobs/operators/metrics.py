"""What the jobs' Python workers count, on its way to Prometheus through Flink's own reporter.

    penstock_intake_accepted_total{topic="jobs_posting_v1"}       counters(group, "intake", (...), topic=...)
    penstock_postings_published_total                             counters(group, "postings", (...))
    penstock_freshness_seconds_bucket{until="enriched", le=...}   Freshness(group, "enriched")

Each number is a plain integer that Flink reads at the end of a bundle, as a gauge. Beam's own counters find their
container through the bundle's thread, so what an AsyncFunction counts on its event loop would be lost; and Flink shows
a distribution to Prometheus as 0. A restarted worker begins at 0 again, which Prometheus takes for a counter's reset.
Flink puts its scope before each name: infra/prometheus/ takes it off. Written by one thread each.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

GROUP = "penstock"  # where Flink's scope ends and ours begins
# Seconds; fewer than the roles have, since each bound is a metric that crosses to the JVM with every bundle.
BOUNDS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0)


class Count:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, n: int = 1) -> None:
        self.value += n

    def read(self) -> int:
        return self.value


def counters(group: Any, subject: str, names: Sequence[str], **labels: str) -> dict[str, Count]:
    """One counter a name, `penstock_<subject>_<name>_total`, registered in an operator's metric group."""
    for label, value in labels.items():
        group = group.add_group(label, value)
    ours = group.add_group(GROUP)
    counted = {name: Count() for name in names}
    for name, count in counted.items():
        ours.gauge(f"{subject}_{name}_total", count.read)
    return counted


class Freshness:
    """penstock_freshness_seconds{until}: from the posting event's Kafka timestamp until this point of its way."""

    def __init__(self, group: Any, until: str) -> None:
        self._buckets = [Count() for _ in (*BOUNDS, None)]  # cumulative: of at most this bound; the last counts all
        labelled = group.add_group("until", until)
        for bound, bucket in zip((*BOUNDS, None), self._buckets, strict=True):
            labelled.add_group("le", _written(bound)).add_group(GROUP).gauge("freshness_seconds_bucket", bucket.read)
        labelled.add_group(GROUP).gauge("freshness_seconds_count", self._buckets[-1].read)

    def observe(self, produced_at_ms: int, now_ms: int) -> None:
        for bucket in self._buckets[bisect_left(BOUNDS, max(0, now_ms - produced_at_ms) / 1000) :]:
            bucket.value += 1


def _written(bound: float | None) -> str:
    """0_5 for 0.5: Flink keeps no dots in a label. infra/prometheus/ puts them back."""
    return "inf" if bound is None else f"{bound:g}".replace(".", "_")
