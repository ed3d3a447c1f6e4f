"""What the jobs' Python counts, on its way to Prometheus through Flink's own reporter.

    penstock_intake_accepted_total{topic="jobs_posting_v1"}       counters(group, "intake", (...), topic=...)
    penstock_postings_published_total                             counters(group, "postings", (...))
    penstock_freshness_seconds_bucket{until="enriched", le=...}   Freshness(group, "enriched")

Flink has two kinds of Python. In a process, Beam's own counters find their container through the bundle's thread, so
what an AsyncFunction counts on its event loop would be lost: there a number is a plain integer, read as a gauge at the
end of each bundle. In the TaskManager's JVM a gauge would be read by a thread that is not Python's: there a number is a
counter of Flink's. Neither has histograms that reach Prometheus (a distribution shows as 0), so buckets are numbers.
A restarted worker begins at 0 again, as Prometheus expects of counters. Flink puts its scope before each name, which
infra/prometheus/ takes off. Each number is written by one thread.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Protocol

GROUP = "penstock"  # where Flink's scope ends and ours begins
# Seconds; fewer than the roles have, since each bound is a number that crosses to the JVM.
BOUNDS = (0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 30.0, 300.0)


class Count(Protocol):
    """A number that only grows."""

    def inc(self, n: int = 1) -> None: ...


class _Read:
    """One that Flink reads."""

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
        group = group.add_group(label, _plain(value))
    ours = group.add_group(GROUP)
    return {name: _counter(ours, f"{subject}_{name}_total") for name in names}


class Freshness:
    """penstock_freshness_seconds{until}: from the posting event's Kafka timestamp until this point of its way."""

    def __init__(self, group: Any, until: str) -> None:
        labelled = group.add_group("until", _plain(until))
        # Cumulative: each counts what took at most its bound, the last one everything.
        self._buckets = [
            _counter(labelled.add_group("le", _plain(bound)).add_group(GROUP), "freshness_seconds_bucket")
            for bound in (*(f"{bound:g}" for bound in BOUNDS), "inf")
        ]

    def observe(self, produced_at_ms: int, now_ms: int) -> None:
        for bucket in self._buckets[bisect_left(BOUNDS, max(0, now_ms - produced_at_ms) / 1000) :]:
            bucket.inc()


def sample(group: Any, subject: str, name: str, read: Callable[[], float]) -> None:
    """`penstock_<subject>_<name>`: somebody else's number. Only where Python is a process of its own."""
    if not _in_jvm(group):
        group.add_group(GROUP).gauge(f"{subject}_{name}", lambda: int(read()))


def _counter(group: Any, name: str) -> Count:
    if _in_jvm(group):
        counter: Count = group.counter(name)
        return counter
    count = _Read()
    group.gauge(name, count.read)
    return count


def _in_jvm(group: Any) -> bool:
    return ".embedded." in type(group).__module__


def _plain(value: str) -> str:
    """0_5 for 0.5: Flink keeps no dots in a label's value. infra/prometheus/ puts those of numbers back."""
    return value.replace(".", "_")
