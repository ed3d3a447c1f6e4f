"""How many the language model scores: the decision, and the pace that it goes by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.shaping.lm_depth import TRUST_S, CallCost, Pace, Reason, decide_lm_depth

STEPS = (16, 32, 64)


@pytest.mark.parametrize(
    ("supply", "budget_s", "cost", "items", "reason"),
    [
        (250, 0.2, None, 16, Reason.UNMEASURED),
        (10, 0.2, None, 10, Reason.SUPPLY),
        (0, 0.2, None, 0, Reason.SUPPLY),
        (250, 0.2, CallCost(0, 0), 64, Reason.CEILING),
        (250, 0.2, CallCost(0.1, 0.001), 64, Reason.CEILING),
        (40, 0.2, CallCost(0, 0.001), 40, Reason.SUPPLY),
        (250, 0.2, CallCost(0, 0.004), 32, Reason.BUDGET),
        (250, 0.2, CallCost(0.1, 0.004), 16, Reason.BUDGET),
        (250, 0.2, CallCost(0, 0.0126), 8, Reason.BUDGET),
        (5, 0.2, CallCost(0, 0.1), 2, Reason.BUDGET),
        (250, 0.2, CallCost(0, 0.2), 1, Reason.BUDGET),
        (250, 0.2, CallCost(0, 0.21), 0, Reason.BUDGET),
        (250, 0.2, CallCost(0.3, 0.0), 0, Reason.BUDGET),
        (250, 0.2, CallCost(0.3, 0.0, 0.1), 1, Reason.BUDGET),
    ],
)
def test_the_deepest_step_that_fits(supply, budget_s, cost, items, reason):
    depth = decide_lm_depth(STEPS, supply, budget_s, cost)
    assert (depth.items, depth.reason) == (items, reason)


_seconds = st.floats(1e-6, 10)


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=4, unique=True).map(sorted),
    st.integers(0, 300),
    st.floats(1e-4, 10),
    _seconds,
    _seconds,
)
def test_it_fits_is_there_and_a_slower_model_scores_no_more(steps, supply, budget_s, fixed_s, item_s):
    depth = decide_lm_depth(steps, supply, budget_s, CallCost(fixed_s, item_s))
    assert 0 <= depth.items <= min(supply, steps[-1])
    assert not depth.items or fixed_s + depth.items * item_s <= budget_s
    assert decide_lm_depth(steps, supply, budget_s, CallCost(2 * fixed_s, 2 * item_s)).items <= depth.items


def test_nothing_is_known_before_the_first_call_that_scored():
    pace = Pace()
    pace.measured(0.0, 0, 5.0)  # all were cached
    assert pace.cost(0.0) is None


def test_calls_of_one_size_say_what_an_item_takes_and_of_several_what_is_fixed():
    alike, mixed = Pace(), Pace()
    for _ in range(5):
        alike.measured(1.0, 16, 0.116)
    assert alike.cost(1.0) == CallCost(0.0, pytest.approx(0.116 / 16), pytest.approx(0.116 / 16))
    for items in (16, 3, 16, 1, 16):
        mixed.measured(1.0, items, 0.1 + items * 0.001)
    cost = mixed.cost(1.0)
    assert (cost.fixed_s, cost.item_s) == (pytest.approx(0.1), pytest.approx(0.001))
    assert decide_lm_depth(STEPS, 250, 0.2, cost).items == 64


@given(st.lists(st.tuples(st.integers(1, 64), _seconds), min_size=1, max_size=30))
def test_a_cost_is_never_less_than_nothing(calls):
    pace = Pace()
    for items, seconds in calls:
        pace.measured(0.0, items, seconds)
    cost = pace.cost(0.0)
    assert cost.fixed_s >= 0 and cost.item_s > 0


@pytest.mark.parametrize("before_s", [1e-4, 0.001, 0.05, 0.3])
@pytest.mark.parametrize(("fixed_s", "item_s", "settled"), [(0, 0.009, 16), (0, 0.03, 4), (0.3, 0, 0)])
def test_whatever_the_pace_was_the_depth_settles_where_it_belongs(before_s, fixed_s, item_s, settled):
    pace, depths = Pace(), []
    for call in range(100):
        depth = decide_lm_depth(STEPS, 250, 0.2, pace.cost(0.0)).items
        depths.append(depth)
        computed = depth - call % 3 if depth > 4 else depth  # some were cached
        pace.measured(0.0, computed, before_s * computed if call < 20 else fixed_s + item_s * computed)
    assert depths[-1] == settled or (settled > 0 and depths[19] == 0)  # none: waits until the measurement is old
    assert depths[-1] == depths[-5]


def test_the_pace_follows():
    pace = Pace()
    pace.measured(0.0, 10, 9.0)
    for _ in range(60):
        pace.measured(3.0, 10, 0.1)
    assert pace.cost(3.0).item_s == pytest.approx(0.01, rel=0.25)


def test_an_old_measurement_is_believed_less_and_less():
    pace = Pace()
    pace.measured(0.0, 1, 8.0)
    assert [pace.cost(since * TRUST_S).item_s for since in (1, 2, 5)] == pytest.approx([8.0, 4.0, 0.5])
