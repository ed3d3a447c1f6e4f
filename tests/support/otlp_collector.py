"""An OTLP/HTTP collector in this process: takes spans as OpenTelemetry's exporters send them, and keeps them."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Taken:
    """A span as it arrived; ids in hex, times in epoch ms."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    began_ms: float
    ended_ms: float
    failed: bool
    attributes: dict[str, Any]


class Collector:
    """Listens on `endpoint` until `close`. `status` other than 200 refuses everything."""

    def __init__(self) -> None:
        self.status = 200
        self._lock = threading.Lock()
        self._spans: list[Taken] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                if collector.status == 200 and self.path == "/v1/traces":
                    collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(collector.status)
                self.end_headers()
                self.wfile.write(ExportTraceServiceResponse().SerializeToString())

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def spans(self, trace_id: str | None = None) -> list[Taken]:
        """In the order of arrival; of one trace, if named."""
        with self._lock:
            return [span for span in self._spans if trace_id in (None, span.trace_id)]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _take(self, request: ExportTraceServiceRequest) -> None:
        with self._lock:
            for resource in request.resource_spans:
                [service] = [a.value.string_value for a in resource.resource.attributes if a.key == "service.name"]
                for scope in resource.scope_spans:
                    self._spans.extend(_taken(service, span) for span in scope.spans)


def _taken(service: str, span: Any) -> Taken:
    return Taken(
        service=service,
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        began_ms=span.start_time_unix_nano / 1e6,
        ended_ms=span.end_time_unix_nano / 1e6,
        failed=span.status.code == 2,
        attributes={a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes},
    )
