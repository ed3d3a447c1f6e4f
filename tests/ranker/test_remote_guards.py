"""Retry budget and circuit breaker: what they promise, whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.backends.remote.guards import Breaker, BreakerLimits, RetryBudget, State

LIMITS = BreakerLimits(window=10, least=3, share=0.5, open_s=1.0, longest_s=4.0)


@given(
    share=st.floats(0.0, 1.0),
    reserve=st.floats(0.0, 5.0),
    asked=st.lists(st.booleans(), max_size=300),
)
def test_retries_are_a_share_of_calls_and_no_more(share, reserve, asked):
    budget = RetryBudget(share, reserve)
    calls = retries = 0
    for retry in asked:
        if retry:
            retries += budget.take()
        else:
            budget.called()
            calls += 1
        assert retries <= reserve + share * calls + 1e-6


def test_after_a_long_calm_no_more_than_the_reserve_at_once():
    budget = RetryBudget(0.5, 2.0)
    for _ in range(1_000):
        budget.called()
    assert [budget.take() for _ in range(4)] == [True, True, False, False]


def fail(breaker, now_s=0.0, times=1):
    return [breaker.failed(breaker.admit(now_s), now_s, "broken") for _ in range(times)]


def opened(now_s=0.0):
    breaker = Breaker(LIMITS)
    assert fail(breaker, now_s, 3) == [False, False, True]
    return breaker


def test_it_opens_at_the_failures_stated_and_lets_nothing_pass():
    breaker = opened()
    assert breaker.state is State.OPEN
    assert breaker.admit(0.99) is None
    assert breaker.reopens_in_s(0.25) == 0.75
    assert breaker.reason == "broken"


def test_failures_among_many_successes_leave_it_closed():
    breaker = Breaker(LIMITS)
    for _ in range(50):
        for _ in range(2):
            breaker.succeeded(breaker.admit(0.0))
        assert fail(breaker) == [False]
    assert breaker.state is State.CLOSED


def test_half_open_one_call_passes_and_closes_it():
    breaker = opened()
    probe = breaker.admit(1.0)
    assert breaker.state is State.HALF_OPEN
    assert breaker.admit(1.0) is None
    breaker.succeeded(probe)
    assert breaker.state is State.CLOSED
    assert breaker.admit(1.0) is not None
    assert fail(breaker, 1.0, 2) == [False, False]  # what was before is forgotten


def test_a_failed_probe_opens_it_for_twice_as_long_up_to_the_longest():
    breaker, now_s, waits = opened(), 0.0, []
    for _ in range(4):
        waits.append(breaker.reopens_in_s(now_s))
        now_s += waits[-1]
        assert breaker.failed(breaker.admit(now_s), now_s, "still broken")
    assert waits == [1.0, 2.0, 4.0, 4.0]


def test_an_abandoned_probe_is_for_the_next_caller():
    breaker = opened()
    breaker.abandoned(breaker.admit(1.0))
    assert breaker.state is State.HALF_OPEN
    assert breaker.admit(1.0) is not None


@pytest.mark.parametrize("late", ["succeeded", "failed", "abandoned"])
def test_a_call_of_an_earlier_state_no_longer_counts(late):
    breaker = Breaker(LIMITS)
    old = breaker.admit(0.0)
    fail(breaker, times=3)
    probe = breaker.admit(1.0)
    arguments = (1.0, "late") if late == "failed" else ()
    assert not getattr(breaker, late)(old, *arguments)
    assert breaker.state is State.HALF_OPEN
    assert breaker.admit(1.0) is None  # the probe is still under way
    breaker.succeeded(probe)
    assert breaker.state is State.CLOSED


@given(st.lists(st.tuples(st.sampled_from(["ok", "fail", "abandon", "wait", "hold"]), st.floats(0.0, 3.0))))
def test_half_open_never_has_two_calls_under_way_and_it_never_stays_shut(steps):
    breaker, now_s, held = Breaker(LIMITS), 0.0, []
    for step, seconds in steps:
        if step == "wait":
            now_s += seconds
            continue
        permit = breaker.admit(now_s)
        if permit is None:
            continue
        if step == "hold":
            held.append(permit)
        elif step == "ok":
            breaker.succeeded(permit)
        elif step == "fail":
            breaker.failed(permit, now_s, "broken")
        else:
            breaker.abandoned(permit)
        if breaker.state is State.HALF_OPEN and step == "hold":
            assert breaker.admit(now_s) is None
    for permit in held:
        breaker.abandoned(permit)
    assert breaker.admit(now_s + LIMITS.longest_s) is not None
