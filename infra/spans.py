"""Spans of this process on their way to an OTLP/HTTP collector. Imports OpenTelemetry; `tracing.py` is the door to it.

Sampling is a function of the trace id, so that every stage of a trace decides alike: a trace that its producer marked
as not sampled never is, any other with the probability `tracing.sample`.
"""

from __future__ import annotations

import atexit
import os
import re
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog
from opentelemetry import trace as otel
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace import NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags
from prometheus_client import Counter

from penstock.infra.settings import TracingSettings

SPANS = Counter("penstock_spans_total", "Spans by what became of them", ["outcome"])  # exported, queue_full, refused
TRACEPARENTS_IGNORED = Counter("penstock_traceparents_ignored_total", "Traceparents that are none: a new trace begins")

QUEUE = 4_096  # spans that may wait
BATCH = 512
EVERY_S = 0.5
EXPORT_S = 5.0  # for one batch, retries included

# https://www.w3.org/TR/trace-context/#traceparent-header: version 00 has four fields, later ones may have more.
_TRACEPARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


def read_traceparent(text: str) -> SpanContext | None:
    """The context that a W3C traceparent names, or None where it is none."""
    match = _TRACEPARENT.fullmatch(text)
    if match is None or (match[1] == "00" and match[5] is not None):
        return None
    context = SpanContext(
        int(match[2], 16), int(match[3], 16), is_remote=True, trace_flags=TraceFlags(int(match[4], 16))
    )
    return context if context.is_valid else None


def write_traceparent(context: SpanContext) -> str:
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags & TraceFlags.SAMPLED:02x}"


class Exporter(Protocol):
    """OTLPSpanExporter, or one of a test."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult: ...

    def shutdown(self) -> None: ...


class Spans:
    """The recorder of one process. Safe to share between threads."""

    def __init__(self, settings: TracingSettings, service: str, exporter: Exporter | None = None) -> None:
        if exporter is None:
            address = f"{settings.endpoint.rstrip('/')}/v1/traces"
            exporter = OTLPSpanExporter(endpoint=address, timeout=EXPORT_S)
        ratio = TraceIdRatioBased(settings.sample)
        self._provider = TracerProvider(
            sampler=ParentBased(ratio, remote_parent_sampled=ratio, remote_parent_not_sampled=ALWAYS_OFF),
            resource=Resource.create({"service.name": f"penstock-{service}", "service.instance.id": str(os.getpid())}),
            shutdown_on_exit=False,
        )
        self._batches = Batches(exporter)
        self._provider.add_span_processor(self._batches)
        self._tracer = self._provider.get_tracer("penstock")
        atexit.register(self.close, 2.0)

    def record(
        self,
        name: str,
        trace: str | None,
        began_ms: float,
        ended_ms: float,
        attributes: Mapping[str, str | int | float],
    ) -> str:
        """A finished span; the traceparent of its children."""
        parent = read_traceparent(trace) if trace else None
        if trace and parent is None:
            TRACEPARENTS_IGNORED.inc()
        context = otel.set_span_in_context(NonRecordingSpan(parent)) if parent is not None else Context()
        began = int(began_ms * 1e6)
        span = self._tracer.start_span(name, context=context, attributes=dict(attributes), start_time=began)
        if "error" in attributes:
            span.set_status(Status(StatusCode.ERROR, str(attributes["error"])))
        span.end(max(began, int(ended_ms * 1e6)))
        return write_traceparent(span.get_span_context())

    def close(self, timeout_s: float) -> None:
        atexit.unregister(self.close)
        self._batches.close(timeout_s)


class Batches(SpanProcessor):
    """A bounded queue and the one thread that empties it. Adding to it never waits; what finds no room is counted."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter
        self._changed = threading.Condition()
        self._queue: deque[ReadableSpan] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do: only finished spans are sent."""

    def on_end(self, span: ReadableSpan) -> None:
        with self._changed:
            if self._closed or len(self._queue) >= QUEUE:
                SPANS.labels("queue_full").inc()
                return
            self._queue.append(span)
            if len(self._queue) >= BATCH:
                self._changed.notify()

    def close(self, timeout_s: float) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(timeout_s)
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """The thread sends within EVERY_S by itself."""
        return True

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or len(self._queue) >= BATCH, EVERY_S)
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
                if not batch and self._closed:
                    return
            if batch:
                SPANS.labels(self._send(batch)).inc(len(batch))

    def _send(self, batch: list[ReadableSpan]) -> str:
        try:
            return "exported" if self._exporter.export(batch) is SpanExportResult.SUCCESS else "refused"
        except Exception as error:  # whatever it is, the stream goes on
            structlog.get_logger().warning("spans not sent", spans=len(batch), error=f"{type(error).__name__}: {error}")
            return "refused"
