"""Logs and metrics, the same for every process: structured lines on stderr, Prometheus counters and histograms.

Metric names carry the `penstock_` prefix and a base unit (seconds, bytes, `_total`). A fallback anywhere is counted in
`DEGRADED` by name and reason, as it is named in the result it touched. A log line about a record carries the record's
ids: whoever takes a record in binds them once (`about`), and calls between roles hand them on (schemas/grpc_avro.py).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import structlog
from prometheus_client import Counter, Histogram, start_http_server

DEGRADED = Counter("penstock_degraded_total", "Fallbacks taken", ["role", "what"])
UNKNOWN_SYMBOLS = Counter("penstock_unknown_symbols_total", "Enum symbols nobody here knows", ["field"])
DEAD_LETTERS = Counter("penstock_dead_letters_total", "Records refused", ["topic", "stage", "error"])
STAGE_SECONDS = Histogram(
    "penstock_stage_seconds",
    "Time in a stage",
    ["role", "stage"],
    buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
FRESHNESS_SECONDS = Histogram(
    "penstock_freshness_seconds",
    "From the posting event's Kafka timestamp until this point of its way",
    ["until"],
    buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 30, 60, 300, 3600),
)

IDS = ("request_id", "posting_id", "subscription_id", "alert_id", "tenant")  # of a record, in its log lines
FORMATS = ("logfmt", "json")
_FIRST = ["timestamp", "level", "role", "event"]


class LogFormatError(ValueError):
    """PENSTOCK_LOG_FORMAT or PENSTOCK_LOG is none that we know."""


def configure_logging(role: str) -> structlog.stdlib.BoundLogger:
    """Set up logging for a process and return its logger. Raises LogFormatError.

    PENSTOCK_LOG=debug|info|warning|error sets the level, PENSTOCK_LOG_FORMAT=logfmt|json the shape. Lines of libraries
    that use the standard library's logging come in the same shape.
    """
    level, render = _level(), _renderer()
    shaped = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[_named(role), *_fields()],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(shaped)
    logging.basicConfig(handlers=[handler], level=level, force=True)
    structlog.configure(
        processors=[_named(role), *_fields(), render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(role=role)
    return logger


def configure_worker_logging(role: str) -> None:
    """The same lines for a process whose standard logging belongs to somebody else: Flink's Python workers.

    Their lines reach the TaskManager's log, which has its own time and level before each.
    """
    if not logging.getLogger().handlers:  # Python in the JVM: nobody takes them, but stderr is the TaskManager's
        logging.basicConfig(stream=sys.stderr, level=_level(), format="%(message)s")
    structlog.configure(
        processors=[_named(role), *_fields(), _renderer()],
        wrapper_class=structlog.make_filtering_bound_logger(_level()),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def about(record: Any) -> AbstractContextManager[None]:
    """Within it, every log line of this thread or task carries the ids that `record` has, and its trace's."""
    return structlog.contextvars.bound_contextvars(**ids_of(record))


def ids_of(record: Any) -> dict[str, str]:
    """The ids that a record has, as log fields."""
    found = {name: value for name in IDS if (value := getattr(record, name, None))}
    trace = getattr(record, "trace", None)
    if trace and trace.count("-") >= 3:
        found["trace_id"] = trace.split("-")[1]
    return found


def serve_metrics(host: str, port: int) -> None:
    """Expose this process's metrics for Prometheus; port 0 means not at all."""
    if port:
        start_http_server(port, addr=host)


Processor = Callable[[Any, str, Any], Any]


def _fields() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
    ]


def _named(role: str) -> Processor:
    """Loggers made before the role was known, and those of libraries, say whose they are."""

    def add(_logger: Any, _method: str, event: Any) -> Any:
        event.setdefault("role", role)
        return event

    return add


def _renderer() -> Processor:
    named = _one_of("PENSTOCK_LOG_FORMAT", "logfmt", FORMATS)
    if named == "json":
        return structlog.processors.JSONRenderer(default=repr, ensure_ascii=False)
    return structlog.processors.LogfmtRenderer(key_order=_FIRST, bool_as_flag=False)


def _level() -> int:
    names: dict[str, int] = {
        name.lower(): number for name, number in logging.getLevelNamesMapping().items() if number > logging.NOTSET
    }
    return names[_one_of("PENSTOCK_LOG", "info", tuple(names))]


def _one_of(variable: str, default: str, known: tuple[str, ...]) -> str:
    given = os.environ.get(variable, default).lower()
    if given not in known:
        raise LogFormatError(f"{variable} is {given!r}: expected one of {', '.join(known)}")
    return given
