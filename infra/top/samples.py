"""Prometheus samples of one part at one moment, and what two moments say: rates and quantiles. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

# Flink's REST interface: operator.label.value.….penstock.name; where its Prometheus reporter has labels, it has pairs.
_FLINK_ID = re.compile(r"(?P<operator>[^.]+)\.(?P<labels>(?:[a-z]+\.[^.]+\.)*)penstock\.(?P<name>[a-z0-9_]+)")

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """Values by name and sorted labels; equal ones of several subtasks are added up."""

    values: Mapping[tuple[str, Labels], float] = field(default_factory=dict)

    def total(self, name: str, **labels: str) -> float | None:
        """The sum over every sample of that name whose labels include these; None when there is none."""
        wanted = labels.items()
        found = [value for (held, has), value in self.values.items() if held == name and wanted <= dict(has).items()]
        return sum(found) if found else None

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        """The same sum for each value of `label`; empty when there is none."""
        out: dict[str, float] = {}
        for (held, has), value in self.values.items():
            given = dict(has)
            if held == name and label in given and labels.items() <= given.items():
                out[given[label]] = out.get(given[label], 0.0) + value
        return out

    def buckets(self, name: str, **labels: str) -> dict[float, float]:
        """Upper bound -> how many were at most that, of a histogram."""
        out: dict[float, float] = {}
        wanted = labels.items()
        for (held, has), value in self.values.items():
            given = dict(has)
            if held == f"{name}_bucket" and wanted <= given.items():
                bound = float(given["le"])
                out[bound] = out.get(bound, 0.0) + value
        return out


def from_text(text: str) -> Samples:
    """What an endpoint answered. Raises ValueError when it is no Prometheus text."""
    return _gathered(
        (sample.name, dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )


def from_flink(values: Iterable[tuple[str, float]]) -> Samples:
    """Metric ids of Flink's REST interface with values: ours by the names they have in Prometheus, others as is."""
    return _gathered((*name_of(metric), value) for metric, value in values)


def name_of(metric: str) -> tuple[str, dict[str, str]]:
    """(name, labels) of a metric id of Flink's REST interface."""
    match = _FLINK_ID.fullmatch(metric)
    if match is None:
        operator, _, name = metric.partition(".")
        return name or operator, {"operator_name": operator} if name else {}
    parts = match["labels"].split(".")[:-1]
    labels = dict(zip(parts[::2], parts[1::2], strict=True))
    if "le" in labels:
        labels["le"] = "+Inf" if labels["le"] == "inf" else labels["le"].replace("_", ".")
    return f"penstock_{match['name']}", labels


def quantile(q: float, buckets: Mapping[float, float]) -> float | None:
    """As Prometheus's histogram_quantile: linear within a bucket; the last finite bound for what lies past it."""
    bounds = sorted(buckets)
    if not bounds or (total := buckets[bounds[-1]]) <= 0:
        return None
    rank, below, count_below = q * total, 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return below
            return below + (bound - below) * (
                (rank - count_below) / (count - count_below) if count > count_below else 1
            )
        below, count_below = bound, count
    return below


def since(before: Mapping[float, float], now: Mapping[float, float]) -> dict[float, float]:
    """What a histogram took in between; all of `now` after a restart."""
    if not before or any(now.get(bound, 0.0) < count for bound, count in before.items()):
        return dict(now)
    return {bound: count - before.get(bound, 0.0) for bound, count in now.items()}


def grown(before: float | None, now: float | None) -> float | None:
    """How much a counter grew; all of it after a restart. None where it was not or is not there."""
    if before is None or now is None:
        return None
    return now - before if now >= before else now


def _gathered(samples: Iterable[tuple[str, Mapping[str, str], float]]) -> Samples:
    values: dict[tuple[str, Labels], float] = {}
    for name, labels, value in samples:
        key = (name, tuple(sorted(labels.items())))
        values[key] = values.get(key, 0.0) + value
    return Samples(values)
