"""Logs and metrics, the same for every process: structured lines on stderr, Prometheus counters and histograms.

Metric names carry the unit and the `penstock_` prefix. A fallback anywhere is counted in `DEGRADED` by name and
reason, as it is named in the result it touched.
"""

from __future__ import annotations

import logging
import os
import sys

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


def configure_logging(role: str) -> structlog.stdlib.BoundLogger:
    """Set up logging for a process and return its logger. PENSTOCK_LOG=debug|info|warning sets the level."""
    level = os.environ.get("PENSTOCK_LOG", "info").upper()
    logging.basicConfig(stream=sys.stderr, level=level, format="%(message)s", force=True)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "role", "event"], bool_as_flag=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logger: structlog.stdlib.BoundLogger = structlog.get_logger(role=role)
    return logger


def serve_metrics(host: str, port: int) -> None:
    """Expose this process's metrics for Prometheus; port 0 means not at all."""
    if port:
        start_http_server(port, addr=host)
