"""`penstock top`: what two readings say, how it looks in narrow and wide terminals, and that nothing has to be up."""

import json
import math
import os
import pty
import select
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.infra.settings import Settings
from penstock.infra.top import stages, view
from penstock.infra.top.reading import Lag, Reading, Usage
from penstock.infra.top.samples import Samples, from_flink, from_text, grown, name_of, quantile, since

ENDPOINT = """\
# HELP penstock_freshness_seconds From the posting event's Kafka timestamp until this point of its way
# TYPE penstock_freshness_seconds histogram
penstock_freshness_seconds_bucket{le="0.1",until="searchable"} %d.0
penstock_freshness_seconds_bucket{le="0.5",until="searchable"} %d.0
penstock_freshness_seconds_bucket{le="+Inf",until="searchable"} %d.0
# HELP penstock_index_updates_total Index updates
# TYPE penstock_index_updates_total counter
penstock_index_updates_total{outcome="accepted"} %d.0
penstock_index_updates_total{outcome="stale"} 1.0
# HELP penstock_index_lag_offsets Not read yet
# TYPE penstock_index_lag_offsets gauge
penstock_index_lag_offsets 7.0
penstock_index_lag_seconds 2.5
"""
SOURCE = "Source__read_jobs_posting_v1"


def flink(read, refused, at_most_half):
    return from_flink(
        [
            (f"{SOURCE}.numRecordsIn", read),
            (f"{SOURCE}.pendingRecords", 12),
            (f"{SOURCE}.currentEmitEventTimeLag", 1_500),
            ("decode_and_check_postings.topic.jobs_posting_v1.penstock.intake_refused_total", refused),
            ("keep_the_newest.penstock.postings_refused_total", 1),
            ("keep_the_newest.penstock.postings_without_vector_total", 3),
            ("keep_the_newest.until.enriched.le.0_5.penstock.freshness_seconds_bucket", at_most_half),
            ("keep_the_newest.until.enriched.le.inf.penstock.freshness_seconds_bucket", at_most_half),
        ]
    )


def reading(at, **changes):
    return replace(
        Reading(
            at=at,
            metrics={
                "retrieval": from_text(ENDPOINT % (10 * at, 20 * at, 20 * at, 100 * at)),
                "postings": flink(50 * at, 2, 10 * at),
            },
            ends={"jobs.posting.v1": 80 * at, "search.query.v1": 5 * at, "alerts.feed.v1": 3 * at},
            lags={("penstock-ranker", "rank.request.v1"): Lag(40, 3.5)},
            usage={"retrieval": Usage(600_000_000, 0.5 * at), "kafka": Usage(300_000_000, 0.1 * at)},
            troubles={"ranker": "connection refused", "alerts": "not submitted"},
        ),
        **changes,
    )


def by_stage(before, now):
    return {row.stage: row for row in stages.rows(Settings(), before, now)}


# --- what readings say -----------------------------------------------------------------------------------------------


def test_rates_lag_and_quantiles_of_the_window():
    rows = by_stage(reading(2), reading(4))
    assert list(rows) == ["producers", "postings", "enrich", "retrieval", "queries", "ranker", "alerts", "feeds"]
    assert rows["producers"].rate == 85
    assert rows["feeds"].rate == 3
    postings = rows["postings"]
    assert (postings.rate, postings.lag, postings.behind_s) == (50, 12, 1.5)
    assert (postings.errors, postings.degraded) == (3, 3)
    assert 0 < postings.p50_s < postings.p99_s <= 0.5
    retrieval = rows["retrieval"]
    assert (retrieval.rate, retrieval.lag, retrieval.behind_s) == (100, 7, 2.5)
    assert retrieval.p50_s == pytest.approx(0.1)
    assert (retrieval.rss_bytes, retrieval.cpu) == (600_000_000, 0.5)
    assert (retrieval.errors, retrieval.degraded) == (0, 0)


def test_refused_subscriptions_are_errors_of_the_alerts_job():
    names = ("topic.alerts_subscription_v1.penstock.intake_refused_total", "penstock.subscriptions_refused_total")
    now = reading(4, metrics={"alerts": from_flink((f"compile.{name}", 2) for name in names)})
    assert by_stage(reading(2), now)["alerts"].errors == 4


def test_a_part_that_is_down_says_so_beside_what_others_know_of_it():
    rows = by_stage(reading(2), reading(4))
    assert (rows["ranker"].trouble, rows["ranker"].lag, rows["ranker"].behind_s) == ("connection refused", 40, 3.5)
    assert rows["ranker"].errors is None
    assert rows["alerts"].trouble == "not submitted"


def test_a_restarted_part_counts_from_nothing():
    before, now = reading(10), reading(11)
    now = replace(now, metrics=now.metrics | {"retrieval": from_text(ENDPOINT % (1, 2, 2, 30))})
    assert by_stage(before, now)["retrieval"].rate == 31
    assert by_stage(before, now)["retrieval"].p99_s <= 0.5


def test_what_is_not_known_is_not_zero():
    nothing = Reading(at=1.0)
    for row in stages.rows(Settings(), nothing, replace(nothing, at=2.0)):
        assert (row.rate, row.lag, row.p50_s, row.errors, row.rss_bytes) == (None,) * 5


def test_flinks_ids_become_the_names_that_prometheus_has():
    assert name_of("keep.until.enriched.le.0_5.penstock.freshness_seconds_bucket") == (
        "penstock_freshness_seconds_bucket",
        {"until": "enriched", "le": "0.5"},
    )
    assert name_of("keep.penstock.postings_stale_total") == ("penstock_postings_stale_total", {})
    assert name_of(f"{SOURCE}.pendingRecords") == ("pendingRecords", {"operator_name": SOURCE})


@given(st.lists(st.floats(0, 20), min_size=1, max_size=50), st.floats(0.01, 1))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values, q):
    bounds = [0.5, 1.0, 2.0, 5.0, 10.0, math.inf]
    found = quantile(q, {bound: sum(v <= bound for v in values) for bound in bounds})
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < upper), default=0.0)
    assert lower <= found <= upper


def test_nothing_new_has_no_quantile_and_counters_may_begin_again():
    assert quantile(0.5, since({1.0: 3, math.inf: 3}, {1.0: 3, math.inf: 3})) is None
    assert since({1.0: 3, math.inf: 3}, {1.0: 1, math.inf: 1}) == {1.0: 1, math.inf: 1}
    assert (grown(5, 7), grown(5, 2), grown(None, 2), grown(2, None)) == (2, 2, None, None)
    assert Samples().total("anything") is None


# --- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_every_line_fits_and_every_stage_has_one(width):
    before, now = reading(2), reading(4)
    long = dict.fromkeys(("kafka", "enrich", "ranker"), "the broker at 127.0.0.1:9092 does not answer " * 4)
    now = replace(now, troubles={**now.troubles, **long}, usage=now.usage | {"models": Usage(10**12, 10**6)})
    rows, parts = stages.rows(Settings(), before, now), stages.parts(before, now)
    shown = view.screen(rows, parts, title="penstock top " * 20, width=width).plain.split("\n")
    assert max(len(line) for line in shown) <= width
    assert len(shown) <= 24
    for row in rows:
        assert any(line.startswith(f"{row.stage} ") for line in shown)
    assert any("└ the broker" in line for line in shown)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0, "0ms"),
        (0.34, "340ms"),
        (0.9999, "1.0s"),
        (14.4, "14s"),
        (150, "2m"),
        (7_300, "2h"),
        (3e5, "3d"),
    ],
)
def test_durations_are_short(seconds, shown):
    assert view.duration(seconds) == shown


@given(st.floats(0, 1e8))
def test_cells_keep_to_their_width(value):
    for text in (view.amount(value), view.rate(value), view.duration(value), view.size(int(value * 100))):
        assert len(text) <= 6


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_is_up(tmp_path, free_port):
    """The environment of a command whose system is not there."""
    return {
        **os.environ,
        "PENSTOCK_DATA_DIR": str(tmp_path),
        "PENSTOCK_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
        "PENSTOCK_FLINK__REST": f"127.0.0.1:{free_port()}",
        "PENSTOCK_METRICS__RANKER": str(free_port()),
        "TERM": "xterm",
    }


COMMAND = [sys.executable, "-c", "from penstock.infra.cli.main import main; main()", "top"]


def test_one_look_at_a_system_that_is_not_there(nothing_is_up):
    done = subprocess.run(
        [*COMMAND, "--json", "--interval", "0.2"],
        env=nothing_is_up,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    found = {row["stage"]: row["trouble"] for row in told["stages"]}
    assert found["ranker"] == "connection refused"
    assert found["retrieval"] == "no endpoint: metrics.retrieval is 0"
    assert found["postings"] == "flink does not answer"
    assert found["producers"] == "kafka does not answer"


def test_a_live_view_wants_a_terminal(nothing_is_up):
    done = subprocess.run(COMMAND, env=nothing_is_up, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--once" in done.stderr


def test_q_ends_the_live_view_and_gives_the_terminal_back(nothing_is_up):
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        COMMAND, env=nothing_is_up, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    seen, asked = b"", False
    try:
        while select.select([ours], [], [], 60)[0]:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # Linux: the other side is gone
                break
            seen += piece
            if b"connection refused" in seen and not asked:
                os.write(ours, b"q")
                asked = True
        assert asked, seen
        assert running.wait(60) == 0
    finally:
        running.kill()
        running.wait()
        os.close(ours)
    assert seen.rstrip().endswith(b"\x1b[?1049l\x1b[?25h") or b"\x1b[?1049l" in seen[-40:]  # the screen as it was
