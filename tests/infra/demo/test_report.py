"""Numbers of the report: percentiles, freshness of the right versions, and the JSON's keys."""

import pytest

from penstock.infra.demo import sample
from penstock.infra.demo.accounting import Accounting
from penstock.infra.demo.alert_accounting import AlertAccounting
from penstock.infra.demo.rankings import too_short
from penstock.infra.demo.report import Report, degraded_reasons, rows_of
from penstock.infra.demo.watch import Freshness, freshness_ms, percentile
from penstock.infra.scorers import Running
from penstock.schemas.events import IndexOp, IndexUpdate, RankResult
from penstock.schemas.rpc import Row, RowState


@pytest.mark.parametrize(
    ("count", "share", "value"), [(1, 0.99, 1), (2, 0.5, 1), (100, 0.99, 99), (100, 0.5, 50), (1000, 0.99, 990)]
)
def test_percentiles_are_of_the_nearest_rank(count, share, value):
    assert percentile(range(count, 0, -1), share) == value


def test_nothing_has_no_percentile():
    assert percentile([], 0.5) is None


@pytest.mark.parametrize(
    ("op", "revision", "fresh"),
    [
        (IndexOp.UPSERT, 0, 250.0),
        (IndexOp.UPSERT, -1, 250.0),
        (IndexOp.UPSERT, 1, None),
        (IndexOp.EXPIRE, 0, None),
        (IndexOp.DELETE, 0, None),
    ],
)
def test_freshness_is_of_the_fast_lanes_upserts(op, revision, fresh):
    update = IndexUpdate(posting_id="p", version=1, revision=revision, op=op, produced_at=1_000)
    assert freshness_ms(Row(posting_id="p", state=RowState.LIVE, update=update, searchable_at=1_250)) == fresh
    assert freshness_ms(Row(posting_id="p", state=RowState.ABSENT)) is None


def test_each_version_asked_for_is_sampled_once_as_first_seen():
    def row(version, at, revision=0):
        update = IndexUpdate(
            posting_id="p", version=version, revision=revision, op=IndexOp.UPSERT, produced_at=1_000 * version
        )
        return Row(posting_id="p", state=RowState.LIVE, update=update, searchable_at=at)

    fresh = Freshness()
    fresh.expect("p", 2)
    fresh.see([row(1, 9_999)])  # an earlier run's
    fresh.see([row(2, 2_100, revision=-1)])
    fresh.see([row(2, 7_000), row(2, 8_000, revision=1)])  # the same version, healed and refined later
    fresh.expect("p", 3)
    fresh.see([row(3, 3_300)])
    assert fresh.samples() == (100.0, 300.0)


NOT_ASKED = {"degraded": 0, "degraded_reasons": {}, "lm_scored": {"median": 0, "max": 0}}


def report(lost=0, alerts=None, scorer=None, **queries):
    return Report(
        accounting=Accounting(10, 4, 3, 2, 1, 1, lost, 0),
        alerts=alerts,
        freshness_ms={
            "searchable": {"p50": 200.0, "p99": 900.0, "samples": 4},
            "alerted": {"p50": 300.0, "p99": 950.0, "samples": 2},
        },
        postings_per_second=49.5,
        queries={"published": 0} | queries,
        without_vector=0,
        rate=50.0,
        seconds=1.0,
        seed=1,
        lines_refused=0,
        warm_up_s=3.21,
        interruptions={},
        machine={"cores": 2, "memory_gib": 8, "system": "Linux"},
        scorer=scorer,
    )


def test_the_report_has_the_promised_keys():
    document = report().to_json()
    promised = "published live deleted expired rejected dead_lettered lost wrong postings_per_second searches"
    assert set(promised.split()) <= document.keys()
    assert document["freshness_ms"]["searchable"]["p99"] == 900.0
    assert document["freshness_ms"]["alerted"]["p50"] == 300.0
    assert ("lost · wrong", "0 · 0") in rows_of(report())


def test_a_query_never_answered_makes_the_run_unclean_and_one_with_an_error_does_not():
    rest = NOT_ASKED | {"latency_ms": {"p50": 1.0, "p99": 2.0}}
    late = report(published=5, answered=5, with_error=2, **rest)
    missing = report(published=5, answered=3, with_error=0, **rest)
    assert report().clean and late.clean and not missing.clean and not report(lost=1).clean
    assert "2 NEVER ANSWERED" in dict(rows_of(missing))["queries answered"]
    assert "NEVER" not in dict(rows_of(late))["queries answered"]


FUSED = Running("fused", "", False, "fused:1")
ENGINE = Running("engine", "/models/untrained", True, "fused:1+engine-fp32:untrained:2")


def test_the_scorer_and_what_it_read_are_told():
    asked = {"published": 60, "answered": 60, "with_error": 0, "latency_ms": {"p50": 1.0, "p99": 2.0}}
    reasons = {f"reason {number}": 9 - number for number in range(7)}
    read = {"lm_scored": {"median": 32.0, "max": 64}, "degraded": 3, "degraded_reasons": reasons}
    engine = report(scorer=ENGINE, **asked, **read)
    rows = rows_of(engine)
    assert ("scorer", "engine, model untrained: random weights (fused:1+engine-fp32:untrained:2)") in rows
    assert ("read by the language model", "median 32, most 64 postings a query") in rows
    told = [value for name, value in rows if name == "degraded"]
    assert told == [*(f"{9 - n} × reason {n}" for n in range(5)), "2 more reasons, all in the file of --report"]
    document = engine.to_json()
    assert document["scorer"]["model"] == "/models/untrained"
    assert document["queries"]["degraded_reasons"]["reason 6"] == 3
    plain = dict(rows_of(report(scorer=FUSED, **asked, **NOT_ASKED)))
    assert plain["scorer"] == "fused (fused:1)"
    assert not {"read by the language model", "degraded"} & plain.keys()
    silent = dict(rows_of(report(scorer=ENGINE, **asked, **NOT_ASKED)))
    assert silent["read by the language model"] == "median 0, most 0 postings a query"
    nobody = dict(rows_of(report(**asked, **NOT_ASKED)))
    assert "scorer" not in nobody


def test_reasons_that_differ_in_an_amount_are_one():
    def result(*degraded):
        return RankResult(request_id="r", degraded=degraded, timings={})

    away = "models away, words alone (127.0.0.1:7101 does not answer)"
    given = [
        result("language model: 3 postings cut to 512 tokens", "score cache: Redis took 12.5 ms to answer"),
        result("language model: 41 postings cut to 512 tokens", "language model: 7 postings cut to 512 tokens"),
        result(away, "shard-0: no answer within 2 s"),
        result(),
    ]
    assert degraded_reasons(given) == {
        "language model: … postings cut to … tokens": 2,
        "score cache: Redis took … ms to answer": 1,
        away: 1,
        "shard-0: no answer within … s": 1,
    }


@pytest.mark.parametrize(("lost", "wrong", "clean"), [(0, 0, True), (1, 0, False), (0, 1, False)])
def test_an_alert_lost_or_wrong_makes_the_run_unclean(lost, wrong, clean):
    one = report(alerts=AlertAccounting(150, 20, 19, 1, 5, 0, lost, wrong))
    assert one.clean is clean
    assert one.to_json()["alerts"]["lost"] == lost
    assert dict(rows_of(one))["alerts lost · wrong"] == f"{lost} · {wrong}"
    assert "950 ms" in dict(rows_of(one))["produced to alerted"]


def test_rankings_shorter_than_the_tenants_postings_are_told():
    queries = [sample.query("a", "x"), sample.query("b", "x"), sample.query("c", "x", "small")]
    told = too_short(queries, {"a": 1_000, "b": 999, "c": 4}, {"default": 2_000, "small": 4})
    assert len(told) == 1 and "'b': 999 postings ranked instead of 1000" in told[0]
