"""What the cells of a whole ranker make of what they time; and both on an index and a model that are small."""

import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.ranking.caching import NoCache, caching, same
from benchmarks.ranking.end_to_end import ENGINE, FUSED, degraded, distribution, end_to_end, means
from benchmarks.ranking.models import item_texts, queries
from benchmarks.ranking.surroundings import surroundings, timed
from benchmarks.report import Report
from benchmarks.streaming.source import load
from penstock.ranker.cache import Computed, PairVersion
from penstock.ranker.engine.untrained import ModelShape, write
from penstock.schemas.events import RankedItem, RankResult

TINY = ModelShape(2_000, 32, 64, 2, 4, 2, 8)
ROWS = 600


def result(*scores, **changes):
    items = tuple(RankedItem(posting_id=f"p{at}", version=1, score=score, parts={}) for at, score in enumerate(scores))
    made = RankResult(request_id="r", items=items, timings={})
    return replace(made, **changes)


def test_means_count_a_stage_that_a_request_did_without_as_nothing():
    assert means([{"cache": 2.0}, {"cache": 4.0, "score": 9.0}, {"cache": 0.0}]) == {"cache": 2.0, "score": 3.0}
    assert distribution([16, 64, 32, 32]) == {"median": 32, "least": 16, "most": 64}
    assert degraded([result(), result(degraded=("late",)), result()]) == 1


def test_answers_are_the_same_by_posting_version_and_score():
    one = result(0.5, 0.25)
    assert same(one, result(0.5, 0.25))
    assert not same(one, result(0.5, 0.25 + 1e-9))
    assert not same(one, result(0.5))
    newer = replace(one.items[1], version=2)
    assert not same(one, replace(one, items=(one.items[0], newer)))


def test_without_a_cache_every_pair_is_computed():
    asked = []

    def compute(missing):
        asked.append(missing)
        return Computed(np.array([[0.5, number] for number in missing]), np.ones(len(missing), bool))

    pairs = [PairVersion("t", name, 1, 0) for name in "ab"]
    for _ in range(2):
        found = NoCache().rows("m", 2, b"q", pairs, compute, 1.0)
        assert (found.rows[:, 1].tolist(), found.hits, found.degraded) == ([0, 1], 0, ())
    assert asked == [[0, 1], [0, 1]]
    assert NoCache().rows("m", 2, b"q", [], compute, 1.0).rows.shape == (0, 2)


def test_queries_are_those_on_federal_postings(tmp_path):
    assert queries(tmp_path) == []
    (tmp_path / "relevance_judgements").mkdir()
    rows = [{"query": name, "split": name} for name in ("train", "private", "dev")]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "relevance_judgements" / "queries.jsonl").write_text(lines)
    assert queries(tmp_path) == ["train", "dev"]


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells")
    data = folder / "nowhere"
    model = write(folder / "model", item_texts(load(data), 100), TINY)
    with surroundings(folder / "stack", data, folder / "build", model, 1, ROWS) as made:
        yield made


def test_e2e_times_both_arrangements_on_the_same_queries(around):
    report = Report("ranker")
    assert end_to_end(report, around, requests=6) == 0
    [row] = report.results
    told = report.notes["e2e"]
    assert (row.name, row.peers) == ("ranker/e2e/250/p50_ms", {FUSED: told[FUSED]["p50_ms"]})
    assert row.value == pytest.approx(told[ENGINE]["p50_ms"], rel=1e-3) and told[ENGINE]["p50_ms"] > 0
    assert told[ENGINE]["requests"] == told[FUSED]["requests"] == 6
    assert told["lm_scored"]["least"] >= 1
    assert {"retrieve", "cache", "features", "score", "lm", "lm_forward", "reply"} <= set(told[ENGINE]["stages_ms"])
    assert "lm" not in told[FUSED]["stages_ms"]


def test_the_cache_answers_what_it_has_until_a_posting_is_renewed(around):
    report = Report("ranker")
    assert caching(report, around, requests=80) == 0
    assert [row.name for row in report.results] == ["ranker/cache/hit_rate", "ranker/cache/p50_gain"]
    told = report.notes["cache"]["fused alone"]
    assert told["requests"] == 80 and told["sampled"] > 0 and told["renewed_postings"] > 0
    assert 0 < told["hit_rate"] < 1
    pipeline = around.pipeline(around.fused, around.cache("renewed"))
    query = 0
    first = timed(pipeline, around.job(query))[1]
    assert timed(pipeline, around.job(query))[1].cache_hits == first.depth_served == 250
    best = int(first.items[0].posting_id.rpartition("-")[2])
    around.renew([best])
    again = timed(pipeline, around.job(query))[1]
    assert again.cache_hits < 250 and again.degraded == ()
    assert (first.items[0].version + 1) in [
        item.version for item in again.items if item.posting_id == first.items[0].posting_id
    ]
