"""What the gateway counts for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

REQUESTS = Counter("penstock_http_requests_total", "Requests answered", ["route", "method", "status"])
SECONDS = Histogram(
    "penstock_http_request_seconds",
    "Until the answer begins: a stream then goes on",
    ["route"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10),
)
STREAMS = Gauge("penstock_alert_streams_open", "Alert streams open now")
STREAMS_CUT = Counter("penstock_alert_streams_cut_total", "Alert streams ended by the gateway", ["reason"])
STREAMED = Counter("penstock_alerts_streamed_total", "Alerts sent to streams")
PUBLISHED = Counter("penstock_http_published_total", "Records that the broker took for a caller", ["topic"])
FEED_OFFSETS = Gauge("penstock_gateway_feed_held", "Alerts at hand for streams that resume")
