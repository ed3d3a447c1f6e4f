"""Spans: one tree over a trace, sampled alike everywhere, and nobody ever waits for the collector."""

import threading

import pytest
from opentelemetry.sdk.trace.export import SpanExportResult
from otlp_collector import Collector
from prometheus_client import REGISTRY
from system import eventually

from penstock.infra import spans, tracing
from penstock.infra.settings import SettingsError, TracingSettings

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACE = f"00-{TRACE_ID}-b7ad6b7169203331-01"


@pytest.fixture
def collector():
    running = Collector()
    yield running
    running.close()


@pytest.fixture
def exporting(collector):
    tracing.configure(TracingSettings(endpoint=collector.endpoint), "ranker")
    yield collector
    tracing.close()


def counted(name, **labels):
    return REGISTRY.get_sample_value(name, labels) or 0.0


def test_without_a_collector_the_traceparent_goes_on_untouched():
    tracing.configure(TracingSettings(), "ranker")
    assert not tracing.exporting()
    assert tracing.passed("rank", "anything at all", 1, 2) == "anything at all"
    assert tracing.passed("rank", None, 1, 2) is None


def test_stages_form_one_tree_below_the_producer(exporting):
    kept = tracing.passed("postings.keep", TRACE, 1_000.5, 1_010, posting_id="p1", reason=None)
    tracing.passed("index.apply", kept, 1_010, 1_030, rows=3)
    tracing.passed("rank", kept, 1_030, 1_020, error="RankFailed: late")
    found = eventually(lambda: len(s := exporting.spans(TRACE_ID)) == 3 and s, "three spans")
    keep, apply, rank = found
    assert keep.parent_id == "b7ad6b7169203331"
    assert kept == f"00-{TRACE_ID}-{keep.span_id}-01"
    assert apply.parent_id == rank.parent_id == keep.span_id
    assert keep.attributes == {"posting_id": "p1"}
    assert (keep.began_ms, keep.ended_ms) == (1_000.5, 1_010)
    assert rank.failed
    assert rank.ended_ms >= rank.began_ms
    assert not apply.failed
    assert {span.service for span in found} == {"penstock-ranker"}


def test_the_first_stage_begins_a_trace_where_nobody_did(exporting):
    begun = tracing.passed("postings.decode", None, 1, 2)
    assert spans.read_traceparent(begun) is not None
    [span] = eventually(lambda: exporting.spans(begun.split("-")[1]), "a span")
    assert span.parent_id == ""


@pytest.mark.parametrize(
    "bad",
    [
        "x",
        f"00-{TRACE_ID}-b7ad6b7169203331",
        f"00-{'0' * 32}-b7ad6b7169203331-01",
        f"00-{TRACE_ID}-{'0' * 16}-01",
        f"ff-{TRACE_ID}-b7ad6b7169203331-01",
        f"00-{TRACE_ID.upper()}-b7ad6b7169203331-01",
        f"{TRACE}-more",
        f"{TRACE}\n",
    ],
)
def test_what_is_no_traceparent_is_ignored_and_counted(exporting, bad):
    before = counted("penstock_traceparents_ignored_total")
    begun = tracing.passed("rank", bad, 1, 2)
    assert spans.read_traceparent(begun) is not None
    assert TRACE_ID not in begun
    assert counted("penstock_traceparents_ignored_total") == before + 1


def test_later_versions_may_say_more():
    assert spans.read_traceparent(TRACE.replace("00-", "01-", 1) + "-more") is not None


def test_what_the_producer_did_not_sample_is_not_sent(exporting):
    quiet = tracing.passed("rank", TRACE[:-1] + "0", 1, 2)
    assert quiet.endswith("-00")
    assert quiet.split("-")[1] == TRACE_ID
    tracing.passed("rank", None, 1, 2)
    eventually(exporting.spans, "the other span")
    assert not exporting.spans(TRACE_ID)


def test_a_share_of_nothing_sends_nothing_and_says_so_to_those_who_follow(collector):
    recorder = spans.Spans(TracingSettings(endpoint=collector.endpoint, sample=0.0), "ranker")
    assert recorder.record("rank", TRACE, 1, 2, {}).endswith("-00")
    assert recorder.record("rank", None, 1, 2, {}).endswith("-00")
    recorder.close(5)
    assert not collector.spans()


def test_closing_sends_what_is_left(collector):
    recorder = spans.Spans(TracingSettings(endpoint=collector.endpoint), "ranker")
    for n in range(5):
        recorder.record("rank", TRACE, n, n + 1, {})
    recorder.close(10)
    assert len(collector.spans()) == 5


class StuckExporter:
    """A collector that takes the first batch and does not come back until told."""

    def __init__(self):
        self.entered, self.release = threading.Event(), threading.Event()

    def export(self, batch):
        self.entered.set()
        self.release.wait(30)
        return SpanExportResult.FAILURE

    def shutdown(self):
        pass


def test_a_stuck_collector_costs_spans_and_no_time():
    exporter = StuckExporter()
    recorder = spans.Spans(TracingSettings(endpoint="http://unused"), "ranker", exporter)
    full, refused = (
        counted("penstock_spans_total", outcome="queue_full"),
        counted("penstock_spans_total", outcome="refused"),
    )
    recorder.record("rank", TRACE, 1, 2, {})
    assert exporter.entered.wait(30)
    for _ in range(spans.QUEUE + 7):
        recorder.record("rank", TRACE, 1, 2, {})
    assert counted("penstock_spans_total", outcome="queue_full") == full + 7
    exporter.release.set()
    recorder.close(30)
    assert counted("penstock_spans_total", outcome="refused") == refused + 1 + spans.QUEUE


def test_a_collector_that_refuses_is_counted(collector):
    collector.status = 400
    before = counted("penstock_spans_total", outcome="refused")
    recorder = spans.Spans(TracingSettings(endpoint=collector.endpoint), "ranker")
    recorder.record("rank", TRACE, 1, 2, {})
    recorder.close(10)
    assert counted("penstock_spans_total", outcome="refused") == before + 1


def test_asking_for_spans_without_opentelemetry_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "penstock.infra.spans", None)
    with pytest.raises(SettingsError, match=r"tracing\.endpoint.*penstock\[tracing\]"):
        tracing.configure(TracingSettings(endpoint="http://127.0.0.1:4318"), "ranker")
