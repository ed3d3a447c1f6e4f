"""What every operator does first in the Python that runs it: logs in our shape, traces if they are asked for, metrics.

group = begin(runtime_context, self._settings)      # in `open`; then metrics.counters(group, ...)
event = passed(event, "postings.enrich", began_ms)  # the span of a stage; free where nothing is exported
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, TypeVar

import structlog
from prometheus_client import REGISTRY
from pyflink.datastream.functions import RuntimeContext

from penstock.infra import telemetry, tracing
from penstock.infra.settings import Settings, SettingsError
from penstock.jobs.operators import metrics
from penstock.jobs.operators.posting_state import Arrival

E = TypeVar("E")

ROLE = "jobs"
_LOST = ("queue_full", "refused")
_telling: set[str] = set()  # that this process already shows what becomes of its spans


def begin(runtime_context: RuntimeContext, settings: Settings) -> Any:
    """The operator's metric group, with logs and traces set up. What traces lack costs traces, never the job."""
    telemetry.configure_worker_logging(ROLE)
    group = runtime_context.get_metrics_group()
    try:
        tracing.configure(settings.tracing, ROLE)
    except SettingsError as error:
        structlog.get_logger().warning("no spans are exported from here", error=str(error))
    if tracing.exporting() and not _telling:
        _telling.add(ROLE)
        metrics.sample(group, "spans", "lost_total", lambda: sum(_counted("penstock_spans_total", o) for o in _LOST))
        metrics.sample(group, "traceparents", "ignored_total", lambda: _counted("penstock_traceparents_ignored_total"))
    return group


def passed(event: E, stage: str, began_ms: float, **attributes: str | float | None) -> E:
    """The event with the traceparent of the span that ends now: what carries it is a record, an Arrival, or the first
    of a tuple."""
    if not tracing.exporting():
        return event
    given: Any = event
    if isinstance(given, tuple):
        changed: Any = (passed(given[0], stage, began_ms, **attributes), *given[1:])
    elif isinstance(given, Arrival):
        changed = replace(given, posting=passed(given.posting, stage, began_ms, **attributes))
    elif hasattr(given, "trace"):
        trace = tracing.passed(
            stage, given.trace, began_ms, time.time() * 1000, **telemetry.ids_of(given), **attributes
        )
        changed = replace(given, trace=trace)
    else:
        changed = given
    result: E = changed
    return result


def _counted(name: str, outcome: str | None = None) -> float:
    return REGISTRY.get_sample_value(name, {"outcome": outcome} if outcome else {}) or 0.0
