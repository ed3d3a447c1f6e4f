"""The traceparent on its way through the jobs: whatever carries a record carries its trace on; no stage loses it."""

import pytest
from flink_metrics import Metrics

from penstock.infra import tracing
from penstock.infra.settings import Settings, TracingSettings
from penstock.jobs.operators.analyze import request_of
from penstock.jobs.operators.intake import check_posting, check_query, take
from penstock.jobs.operators.posting_state import on_enriched, on_posting, on_timer
from penstock.jobs.operators.worker import begin, passed
from penstock.schemas.events import EnrichedPosting, Enrichment, Posting, SearchQuery, Vector
from penstock.schemas.topics import POSTINGS, QUERIES
from penstock.schemas.wire import codec

NOW = 1_763_718_000_000
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
GOOD = Posting(posting_id="p", version=1, title="Nurse", description="Cares.", trace=TRACE, expires_at=NOW + 9)
VECTOR = Vector(space_id="s", encoder_id="e", dense=b"\0\0")


class Recorder:
    def __init__(self):
        self.spans = []

    def record(self, name, trace, began_ms, ended_ms, attributes):
        self.spans.append((name, trace, attributes))
        return f"after {name}"


@pytest.fixture
def recorder(monkeypatch):
    recording = Recorder()
    monkeypatch.setattr(tracing, "_recorder", recording)
    return recording


def arrival(posting=GOOD):
    taken, letter = take(POSTINGS, codec(Posting), check_posting, codec(Posting).encode(posting), NOW, NOW, Settings())
    assert letter is None
    return taken


def test_without_spans_every_hand_over_keeps_the_producers_trace():
    published = on_posting(None, passed(arrival(), "decode", NOW), NOW, 1_000)
    assert published.update.trace == published.request.trace == TRACE
    answer = EnrichedPosting(
        posting_id="p",
        version=1,
        text_hash=published.request.text_hash,
        enrichment=Enrichment(vector=VECTOR),
        trace=published.request.trace,
    )
    refined = on_enriched(published.state, answer)
    assert refined.update.trace == TRACE
    assert on_timer(refined.state, NOW + 10, 1_000).update.trace == TRACE
    query = SearchQuery(request_id="q", text="nurse", trace=TRACE)
    assert request_of(query, NOW, None).trace == TRACE


def test_a_dead_letter_keeps_the_trace_of_what_could_be_read():
    wrong = Posting(posting_id="p", version=1, title="Nurse", trace=TRACE)
    _, letter = take(POSTINGS, codec(Posting), check_posting, codec(Posting).encode(wrong), NOW, NOW, Settings())
    assert letter.trace == TRACE
    _, letter = take(POSTINGS, codec(Posting), check_posting, b"poison", NOW, NOW, Settings())
    assert letter.trace is None


def test_a_span_takes_the_place_of_its_parent_in_whatever_carries_it(recorder):
    assert passed(arrival(), "decode", NOW).posting.trace == "after decode"
    query, _ = take(
        QUERIES,
        codec(SearchQuery),
        check_query,
        codec(SearchQuery).encode(SearchQuery(request_id="q", text="x")),
        NOW,
        NOW,
        Settings(),
    )
    assert passed(query, "decode", NOW) == (SearchQuery(request_id="q", text="x", trace="after decode"), NOW)
    assert passed("no record", "decode", NOW) == "no record"
    assert [(name, parent) for name, parent, _ in recorder.spans] == [("decode", TRACE), ("decode", None)]
    assert recorder.spans[0][2]["posting_id"] == "p"


def test_an_unusable_tracing_setting_costs_the_spans_and_not_the_job(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "penstock.infra.spans", None)
    settings = Settings(tracing=TracingSettings(endpoint="http://127.0.0.1:4318"))
    assert begin(Metrics(), settings) is not None
    assert not tracing.exporting()


def test_a_worker_shows_what_its_spans_came_to(recorder, monkeypatch):
    from penstock.jobs.operators import worker

    monkeypatch.setattr(worker, "_telling", set())
    metrics = Metrics()
    begin(metrics, Settings())
    begin(metrics, Settings())
    assert metrics.values.keys() == {"penstock_spans_lost_total", "penstock_traceparents_ignored_total"}
    assert set(metrics.values.values()) <= {0, *range(10_000)}
