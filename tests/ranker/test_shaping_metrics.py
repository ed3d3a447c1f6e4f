"""What the ranker tells of its shaper: every decision with class and reason, and the state as numbers and gauges."""

import math
from collections import Counter
from dataclasses import replace

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from shaping_plant import FIXED, ITEM, work

from penstock.infra.top.samples import from_text
from penstock.ranker import decisions
from penstock.ranker.decisions import Counted
from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.shaper import TrafficShaper
from penstock.ranker.shaping.work import Admitted, Batch, Deferred, Refused, Wait
from penstock.ranker.shaping_status import StateCollector, numbers
from penstock.schemas.events import RankClass

OVERHEAD_S, TOKEN_S = 0.002, 2.5e-6
FLOOR_S = OVERHEAD_S + TOKEN_S * (FIXED + 131 * ITEM)


def shaper(**limits):
    return TrafficShaper(Limits(**limits), Prior(OVERHEAD_S, TOKEN_S))


@pytest.fixture
def counted():
    """How much decisions and depths grew, by their labels."""

    def held():
        found = Counter()
        for metric in (decisions.DECISIONS, decisions.DEPTHS, decisions.DEPTH):
            for sample in next(iter(metric.collect())).samples:
                if not sample.name.endswith(("_created", "_bucket")):
                    found[sample.name.removeprefix("penstock_shaping_"), *sample.labels.values()] += sample.value
        return found

    before = held()
    return lambda: {key: grown for key, value in held().items() if (grown := value - before[key])}


def offered(watched, count, **changes):
    return [watched.offer(work(number, **changes), 0.0) for number in range(count)]


# --- decisions -------------------------------------------------------------------------------------------------------


def test_each_admission_counts_by_class_and_reason(counted):
    watched = Counted(shaper())
    found = [*offered(watched, 40, key=None), watched.offer(work(99, 0.0, key="same", patience_s=30.0), 0.0)]
    found.append(watched.offer(work(100, 0.0, key="same", patience_s=30.0), 0.0))
    names = {Admitted: "admitted", Refused: "refused", Deferred: "deferred"}
    expected = Counter(("decisions_total", "INTERACTIVE", names[type(each)], each.reason.value) for each in found)
    assert counted() == expected
    assert {key[2:] for key in expected} >= {("admitted", "fits"), ("admitted", "shared"), ("refused", "late")}


def test_what_is_deferred_counts_under_its_own_class(counted):
    watched = Counted(shaper())
    found = [watched.offer(work(one, 0.0, RankClass.ALERT, patience_s=0.03), 0.0) for one in range(3)]
    assert all(isinstance(each, Deferred) for each in found)
    assert counted() == {("decisions_total", "ALERT", "deferred", "late"): 3}


def test_what_is_offered_again_was_refused_once_and_is_no_load_of_its_own(counted):
    once, often = (shaper() for _ in range(2))
    for inside, times in ((once, 1), (often, 200)):
        watched = Counted(inside)
        watched.offer(work(1_000), 0.0)  # else the first would be tried
        for number in range(times):
            asked = replace(work(number, patience_s=FLOOR_S / 2), again=number > 0)  # nobody could
            assert isinstance(watched.offer(asked, 0.0), Refused)
        watched.batch(1.0, 65_536.0)  # a period has passed
    told = counted()
    assert told["decisions_total", "INTERACTIVE", "refused", "late"] == 2
    assert told["decisions_total", "INTERACTIVE", "waits", "late"] == 199
    found, expected = often.state(1.0), once.state(1.0)
    assert found.refused == expected.refused and sum(found.refused.values()) == 1
    assert (found.depth, found.depth_reason) == (expected.depth, expected.depth_reason)


def test_each_part_counts_with_what_bound_its_depth(counted):
    watched = Counted(shaper())
    offered(watched, 2, wanted=20)
    batch = watched.batch(0.0, 65_536.0)
    assert isinstance(batch, Batch) and [part.depth for part in batch.parts] == [20, 20]
    told = counted()
    assert told["depths_total", "INTERACTIVE", "supply"] == 2
    assert (told["depth_items_count", "INTERACTIVE"], told["depth_items_sum", "INTERACTIVE"]) == (2, 40)
    assert isinstance(watched.batch(0.0, 65_536.0), Wait)
    assert counted() == told


def test_what_expires_counts(counted):
    watched = Counted(shaper())
    watched.offer(work(1, 0.0, patience_s=2 * FLOOR_S), 0.0)
    batch = watched.batch(1.0, 65_536.0)
    assert isinstance(batch, Batch) and [one.number for one in batch.expired] == [1]
    assert counted()["decisions_total", "INTERACTIVE", "expired", "late"] == 1


def test_everything_else_is_the_shapers_own(counted):
    watched = Counted(inside := shaper())
    offered(watched, 3)
    assert watched.withdraw(2) and not watched.withdraw(2)
    batch = watched.batch(0.0, 65_536.0)
    before = inside.cost.batches
    watched.done(batch, 0.1, 0.1)
    assert inside.cost.batches == before + 1
    assert watched.state(0.1) == inside.state(0.1)


# --- state -----------------------------------------------------------------------------------------------------------


def some_state():
    inside = shaper()
    for number in range(3):
        inside.offer(work(number, 0.0, wanted=200), 0.0)
    inside.offer(work(4, 0.0, RankClass.ALERT), 0.0)
    inside.offer(work(5, 0.0, RankClass.RECOMMENDATION, patience_s=0.03), 0.0)
    inside.offer(work(6, 0.0, patience_s=FLOOR_S / 2), 0.0)
    return inside.state(0.1)


def test_the_status_has_each_queue_and_each_reason():
    state = some_state()
    told = numbers(state)
    assert [told[f"queue_{name}"] for name in ("interactive", "recommendation", "alert", "late")] == [3, 0, 1, 1]
    assert told["queue_interactive_tokens"] > 3 * 131 * ITEM
    assert told["queue_alert_oldest_seconds"] == pytest.approx(0.1)
    assert (told["admitted_interactive_total"], told["admitted_alert_total"]) == (3, 1)
    assert (told["deferred_recommendation_total"], told["refused_late_total"]) == (1, 1)
    assert (told["cost_overhead_seconds"], told["cost_token_seconds"]) == (OVERHEAD_S, TOKEN_S)
    assert told["slack_seconds"] == state.slack_s < 0.5
    assert all(math.isfinite(value) for value in told.values())


def test_an_empty_shaper_has_no_slack_to_tell():
    told = numbers(shaper().state(0.0))
    assert "slack_seconds" not in told
    assert told["queue_late"] == told["expired_interactive_total"] == 0


def test_one_scrape_reads_the_state_once_and_only_the_newest_reason_of_depth():
    asked = []
    collector = StateCollector()
    registry = CollectorRegistry()
    registry.register(collector)
    assert b"# HELP penstock_shaping_depth " in generate_latest(registry)
    assert not from_text(generate_latest(registry).decode()).values
    state = some_state()
    collector.read = lambda: asked.append(1) or state
    told = from_text(generate_latest(registry).decode())
    assert len(asked) == 1
    assert told.total("penstock_shaping_waiting_requests") == 5
    assert told.total("penstock_shaping_waiting_requests", queue="LATE") == 1
    assert (
        told.total("penstock_shaping_waiting_tokens", queue="INTERACTIVE") == numbers(state)["queue_interactive_tokens"]
    )
    assert told.total("penstock_shaping_oldest_seconds", queue="ALERT") == pytest.approx(0.1)
    assert told.total("penstock_shaping_depth", reason=state.depth_reason.value) == state.depth
    assert told.total("penstock_shaping_depth") == state.depth
    assert told.total("penstock_shaping_slack_seconds") == state.slack_s
    assert told.total("penstock_shaping_cost_token_seconds") == TOKEN_S
    collector.read = lambda: shaper().state(0.0)
    assert from_text(generate_latest(registry).decode()).total("penstock_shaping_slack_seconds") == math.inf
