"""What a soak asks, counts and makes of it; and a soak of seconds on a tiny model."""

import gc
import json
import math

import numpy as np
import pytest

from benchmarks.ranking.drawing import zipf
from benchmarks.ranking.models import item_texts
from benchmarks.ranking.pauses import Durations, Pauses
from benchmarks.ranking.soak_load import (
    BULK,
    BURST,
    CYCLE_S,
    LARGEST,
    MIXED,
    QUIET,
    Drawing,
    FirstScores,
    Postings,
    phase,
)
from benchmarks.ranking.soaking import by_minute, soak, windows
from benchmarks.report import Report
from benchmarks.streaming.source import load
from penstock.ranker.engine.untrained import ModelShape
from penstock.schemas.events import IndexOp

TINY = ModelShape(2_000, 32, 64, 2, 4, 2, 8)
QUERIES = [f"nurse in Ohio, shift {number}" for number in range(20)]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return item_texts(load(tmp_path_factory.mktemp("nowhere")), 200)


def test_zipf_s_chances_fall_with_the_rank_and_are_drawn_so():
    chances = zipf(780, 1.0)
    assert chances.sum() == pytest.approx(1.0)
    assert chances[0] / chances[9] == pytest.approx(10.0)
    assert chances[0] == pytest.approx(1 / sum(1 / rank for rank in range(1, 781)))
    drawn = np.bincount(np.random.default_rng(5).choice(780, 50_000, p=chances), minlength=780) / 50_000
    assert abs(drawn - chances).max() < 0.005


def test_a_cycle_is_mixed_then_a_burst_then_quiet():
    seen = [phase(second) for second in np.arange(0.0, 2 * CYCLE_S, 0.5)]
    changes = [now for before, now in zip([None, *seen], seen, strict=False) if before != now]
    assert changes == [MIXED, BURST, QUIET, MIXED, BURST, QUIET]
    assert seen.count(MIXED) > seen.count(BURST) > seen.count(QUIET) > 0


def test_callers_ask_the_same_for_the_same_seed_and_of_every_kind():
    drawing, again, other = (Drawing((1, caller), 20, 900) for caller in (0, 0, 1))
    asked = [drawing.next(MIXED) for _ in range(2_000)]
    assert asked == [again.next(MIXED) for _ in range(2_000)]
    assert asked[:20] != [other.next(MIXED) for _ in range(20)]
    assert {len(one.postings) for one in asked} >= {1, 2, 60} and max(len(one.postings) for one in asked) <= LARGEST
    assert {one.interactive for one in asked} == {True, False}
    late = [one for one in asked if one.deadline_s <= 0]
    leaving = [one for one in asked if one.leaves_s < math.inf]
    assert 0.02 < len(late) / len(asked) < 0.08 and 0.02 < len(leaving) / len(asked) < 0.08
    for one in [*asked, drawing.bulk(), drawing.next(BURST)]:
        assert len(set(one.postings)) == len(one.postings) and 0 <= min(one.postings) <= max(one.postings) < 900
    mostly = [Drawing((1, caller), 20, 900)._favoured for caller in (0, 1)]
    assert (mostly[0] == mostly[1]).all(), "callers meet each other's pairs"
    assert len(Drawing((1, 0), 20, 9_000).bulk().postings) == BULK


def test_a_version_decides_the_text_and_short_postings_stay_short(texts):
    postings = Postings(texts, now_ms=0)
    assert len(postings) % 3 == 0
    for number in (0, 1, 2, 3, 50):
        seen = []
        for _ in range(5):
            update = postings.renewed(number, now_ms=1, expires_at=7)
            assert postings.current[number] is update and postings.number(update) == number
            assert update.item_text == postings.texts[postings.text(number, update.version)]
            assert ("\n" in update.item_text) == (number % 3 > 0)
            seen.append(update.item_text)
        assert len(set(seen)) == 5
    gone, held = postings.deleted(4, now_ms=2), postings.current[4]
    assert gone.op is IndexOp.DELETE and (gone.version, gone.revision) > (held.version, held.revision)
    assert postings.renewed(4, 3, None).version > gone.version


def test_a_score_that_is_not_the_pair_s_first_is_counted():
    first = FirstScores(2, 4)
    assert first.differing(0, [1, 3], np.array([0.25, 0.5])) == 0
    assert first.differing(1, [1, 3], np.array([0.75, 0.9])) == 0
    assert first.differing(0, [3, 1, 2], np.array([0.5 + 9e-6, 0.25, 0.1])) == 0
    assert first.differing(0, [3, 1, 2], np.array([0.5, 0.25 + 2e-5, 0.1])) == 1
    assert first.differing(0, [0, 2], np.array([np.nan, 0.3])) == 2


def test_growth_is_of_the_medians_of_the_first_and_the_last_tenth_after_the_warm_up():
    samples = [(float(second), 1_000 if second < 300 else 2_000 + second) for second in range(1_300)]
    samples[305] = (305.0, 9_000_000)  # one odd second
    assert windows(samples, 300.0, 1_300.0) == (2_351, 3_249.5)
    with pytest.raises(ValueError, match="longer"):
        windows(samples, 300.0, 5_000.0)
    assert by_minute([(0.0, 1_000_000), (59.0, 3_000_000), (60.0, 5_000_000)]) == [2.0, 5.0]


def test_durations_keep_percentiles_within_two_percent_and_the_longest_exactly():
    durations = Durations()
    assert durations.percentile(0.99) == 0.0
    rng = np.random.default_rng(3)
    took = rng.lognormal(0.0, 1.5, 5_000)
    for one in took:
        durations.add(float(one))
    for share in (0.01, 0.5, 0.99, 1.0):
        real = np.sort(took)[math.ceil(share * len(took)) - 1]
        assert real <= durations.percentile(share) * (1 + 1e-12) and durations.percentile(share) <= 1.02 * real
    assert durations.max_ms == took.max() and durations.total_ms == pytest.approx(took.sum())
    durations.add(1e9)
    durations.add(0.0)
    assert durations.percentile(1.0) == 1e9


def test_collections_are_counted_by_generation_with_their_time():
    with Pauses() as pauses:
        kept = [[] for _ in range(100)]
        for one in kept:
            one.append(kept)
        pauses.clear()
        for generation in (0, 1, 1, 2):
            gc.collect(generation)
        told = pauses.told()
    counted = told["collections"]
    gc.collect()
    assert counted[1] >= 2 and counted[2] >= 1 and counted[0] >= 1
    assert pauses.told() == told, "it has left gc.callbacks"
    assert 0 < told["p99_ms"] <= told["max_ms"] <= told["total_ms"]
    assert told["max_ms"] <= told["wall_max_ms"] * 1.01


def test_a_soak_of_seconds(tmp_path, texts):
    report = Report("ranker")
    assert soak(report, tmp_path, TINY, texts, QUERIES, seconds=6.0, threads=1) == 0
    assert [result.name for result in report.results] == ["ranker/soak/rss_growth", "ranker/soak/max_gc_pause_ms"]
    told = report.notes["soak"]
    json.dumps(told)
    assert told["requests"]["served"] > 20 and told["requests"]["failed"] == 0
    assert told["requests"]["expired"] > 0 and told["cached"] > 0 and told["bulk_served"] == 1
    assert told["scored"] + told["cached"] == told["items"]
    assert told["updates"] > 0 and told["rss_mb"]["first"] > 50
