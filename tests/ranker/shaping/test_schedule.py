"""A lane's two orders, and what its turns owe to whom."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.shaping.demand import Demand
from penstock.ranker.shaping.picker import Picker
from penstock.ranker.shaping.schedule import LATE, Entry, Lane
from penstock.ranker.shaping.work import Work
from penstock.schemas.events import RankClass


def entry(number: int, tenant: str, due_s: float, cost: float, level: int = 0) -> Entry:
    work = Work(number, tenant, RankClass.INTERACTIVE, 0.0, due_s, 0.0, 1.0, 1, 1, np.ones(1))
    return Entry(work, level, due_s, due_s, due_s, cost)


works = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([1.0, 2.0, 3.0]), st.sampled_from([1.0, 5.0, 20.0])), max_size=30
)


@given(works, st.lists(st.sampled_from(["first", "turn", "drop"]), min_size=30, max_size=30))
def test_each_leaves_once_by_either_order(given_works: list[tuple[str, float, float]], how: list[str]) -> None:
    lane = Lane()
    waiting = {n: entry(n, *one) for n, one in enumerate(given_works)}
    for one in waiting.values():
        lane.push(one, 1.0)
    for step in how:
        if not waiting:
            break
        if step == "drop":
            lane.drop(waiting.pop(min(waiting)))
        else:
            taken = lane.first() if step == "first" else lane.turn()
            assert taken is not None and waiting.pop(taken.work.number) is taken
            if step == "first":
                assert taken.due_s == min([taken.due_s, *(one.due_s for one in waiting.values())])
            else:
                own = [one.due_s for one in waiting.values() if one.work.tenant == taken.work.tenant]
                assert taken.due_s == min([taken.due_s, *own])
            lane.take(taken)
        assert lane.works == len(waiting)
        assert lane.cost == sum(one.cost for one in waiting.values())
    assert (lane.first() is None) is (not waiting) and (lane.turn() is None) is (not waiting)


@given(
    st.dictionaries(st.sampled_from("abcde"), st.sampled_from([0.25, 0.5, 1.0, 2.0]), min_size=2, max_size=5),
    st.lists(st.sampled_from([1.0, 7.0, 50.0]), min_size=5, max_size=5),
)
def test_a_tenant_waits_no_longer_than_stated_between_two_of_its_works(
    weights: dict[str, float], costs: list[float]
) -> None:
    lane, number = Lane(), 0
    dearest = max(costs)
    for tenant, weight in weights.items():
        for n in range(60):
            lane.push(entry(number, tenant, float(n), costs[(number + n) % len(costs)]), weight)
            number += 1
    since = dict.fromkeys(weights, 0.0)
    tokens = dict.fromkeys(weights, 0.0)
    while True:
        one = lane.turn()
        assert one is not None
        tenant = one.work.tenant
        bound = (math.ceil(1 / weights[tenant]) + 1) * sum((w + 1) * dearest for t, w in weights.items() if t != tenant)
        assert since[tenant] <= bound
        lane.take(one)
        tokens[tenant] += one.cost
        since = {t: 0.0 if t == tenant else waited + one.cost for t, waited in since.items()}
        if not any(e.work.tenant == tenant and e.waiting for _, _, e in lane._heap):
            break
    per_weight = [tokens[t] / w for t, w in weights.items()]
    assert max(per_weight) - min(per_weight) <= 2 * dearest * (1 / min(weights.values()) + 1)


def test_withdrawn_works_do_not_stay() -> None:
    lane = Lane()
    for n in range(10_000):
        one = entry(n, "a", 1e6 - n, 1.0)
        lane.push(one, 1.0)
        if n >= 10:
            lane.drop(one)
    assert len(lane._heap) < 200 and lane.works == 10


def test_a_level_served_by_deadline_alone_forgets_its_tenants() -> None:
    """As the late ones are, of which some always wait."""
    picker = Picker(Demand(LATE + 1, 1e-6), 0.08)
    lane = picker.lanes[LATE]
    for n in range(10_000):
        picker.push(entry(n, f"tenant {n}", float(n), 1.0, LATE), 1.0)
        if n >= 10:
            first = lane.first()
            assert first is not None and first.work.number == n - 10
            picker.take(first)
    assert lane.works == 10
    assert max(map(len, (lane._flows, lane._ring, lane._heap, picker._hoped))) <= 2 * 11 + 64
    assert {one.work.tenant for one in iter_turns(lane)} == {f"tenant {n}" for n in range(9_990, 10_000)}
    assert not lane.works and not sum(len(flow.heap) for flow in lane._flows.values())


def iter_turns(lane: Lane) -> Iterator[Entry]:
    while (one := lane.turn()) is not None:
        lane.take(one)
        yield one


def test_who_had_nothing_waiting_saved_nothing() -> None:
    lane = Lane()
    for n in range(20):
        lane.push(entry(n, "always", float(n), 10.0), 1.0)
        if n % 4 == 0:
            lane.push(entry(100 + n, "seldom", float(n), 10.0), 1.0)
            one = lane.turn()
            assert one is not None
            lane.take(one)
    for n in range(10):
        lane.push(entry(200 + n, "seldom", float(n), 10.0), 1.0)
    order = []
    for _ in range(10):
        one = lane.turn()
        assert one is not None
        lane.take(one)
        order.append(one.work.tenant)
    assert order.count("seldom") == pytest.approx(5, abs=1)
