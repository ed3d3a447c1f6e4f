"""How many the language model scores: the decision, and the pace that it goes by."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.shaping.lm_depth import TRUST_S, Pace, Reason, decide_lm_depth

STEPS = (16, 32, 64)


@pytest.mark.parametrize(
    ("supply", "budget_s", "pace", "items", "reason"),
    [
        (250, 0.2, None, 16, Reason.UNMEASURED),
        (10, 0.2, None, 10, Reason.SUPPLY),
        (250, 0.2, 0.0, 64, Reason.CEILING),
        (250, 0.2, 0.001, 64, Reason.CEILING),
        (40, 0.2, 0.001, 40, Reason.SUPPLY),
        (250, 0.2, 0.004, 32, Reason.BUDGET),
        (250, 0.2, 0.012, 16, Reason.BUDGET),
        (250, 0.2, 0.0126, 8, Reason.BUDGET),
        (250, 0.2, 0.2, 1, Reason.BUDGET),
        (250, 0.2, 0.21, 0, Reason.BUDGET),
        (0, 0.2, 0.21, 0, Reason.SUPPLY),
    ],
)
def test_the_deepest_step_that_fits(supply, budget_s, pace, items, reason):
    depth = decide_lm_depth(STEPS, supply, budget_s, pace)
    assert (depth.items, depth.reason) == (items, reason)


@given(
    st.lists(st.integers(1, 200), min_size=1, max_size=4, unique=True).map(sorted),
    st.integers(0, 300),
    st.floats(1e-4, 10),
    st.floats(1e-6, 10),
)
def test_it_fits_is_there_and_is_never_more_than_asked(steps, supply, budget_s, pace):
    depth = decide_lm_depth(steps, supply, budget_s, pace)
    assert 0 <= depth.items <= min(supply, steps[-1])
    assert depth.items * pace <= budget_s * (1 + 1e-9)
    slower = decide_lm_depth(steps, supply, budget_s, 2 * pace)
    assert slower.items <= depth.items


def test_the_pace_follows_what_was_measured_and_large_calls_count_for_more():
    pace = Pace()
    assert pace.seconds_an_item(0.0) is None
    pace.measured(0.0, 0, 5.0)  # all were cached
    assert pace.seconds_an_item(0.0) is None
    pace.measured(1.0, 10, 1.0)
    assert pace.seconds_an_item(1.0) == pytest.approx(0.1)
    pace.measured(2.0, 1, 1.0)
    assert pace.seconds_an_item(2.0) == pytest.approx(1.9 / 10)
    for _ in range(60):
        pace.measured(3.0, 10, 0.1)
    assert pace.seconds_an_item(3.0) == pytest.approx(0.01, rel=0.05)


def test_an_old_measurement_is_believed_less_and_less():
    pace = Pace()
    pace.measured(0.0, 1, 8.0)
    assert pace.seconds_an_item(TRUST_S) == pytest.approx(8.0)
    assert pace.seconds_an_item(2 * TRUST_S) == pytest.approx(4.0)
    assert pace.seconds_an_item(5 * TRUST_S) == pytest.approx(0.5)
