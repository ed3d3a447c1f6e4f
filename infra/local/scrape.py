"""Where Prometheus finds a local stack's parts: for the file discovery of infra/prometheus/prometheus.yml."""

from __future__ import annotations

import json
from collections.abc import Mapping

from penstock.infra.local.ports import METRICS
from penstock.infra.settings import Settings


def targets(settings: Settings, chosen: Mapping[str, int]) -> str:
    """The roles' endpoints, and Flink's where settings switch its reporter on; as JSON."""
    host = settings.metrics.host
    found = [
        {"targets": [f"{host}:{chosen[listener]}"], "labels": {"role": role}}
        for listener, (_, role) in METRICS.items()
        if chosen.get(listener)
    ]
    if first := settings.metrics.flink:
        found.append({"targets": [f"127.0.0.1:{first}", f"127.0.0.1:{first + 1}"], "labels": {"role": "flink"}})
    return json.dumps(found, indent=2) + "\n"
