"""The test of promises against one that looks at every work."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.shaping.demand import WHOLE, Demand

SHARES = (0.9, 0.6, 0.2)  # of levels
TOKEN_S = 1e-3


@dataclass(frozen=True)
class Promise:
    level: int
    slot: float
    cost: float


def latest_start(promises: list[Promise], share: float) -> float:
    """When an engine of that share must begin, by looking at each deadline."""
    return min(
        (
            by - sum(one.cost for one in promises if one.slot <= by) * TOKEN_S / share
            for by in {p.slot for p in promises}
        ),
        default=math.inf,
    )


@st.composite
def changes(draw: st.DrawFn) -> list[tuple[str, Promise]]:
    return draw(
        st.lists(
            st.tuples(
                st.sampled_from(["add", "add", "remove"]),
                st.builds(
                    Promise,
                    st.integers(0, 2),
                    st.sampled_from([0.25, 0.5, 0.5625, 0.75, 1.0, 2.0, 8.0, 64.0]),
                    st.integers(1, 400).map(float),
                ),
            ),
            max_size=40,
        )
    )


@given(changes(), st.sampled_from([0.0, 0.1, 0.3]))
def test_what_fits_is_what_looking_at_every_work_says(given_changes: list[tuple[str, Promise]], start_s: float) -> None:
    demand = Demand(3, TOKEN_S)
    for level, share in enumerate(SHARES):
        demand.share(level, share)
    held: list[Promise] = []
    for what, one in given_changes:
        if what == "remove" and held:
            gone = held.pop(int(one.cost) % len(held))
            demand.remove(gone.level, gone.slot, gone.cost)
            continue
        fits = all(
            latest_start([p for p in (*held, one) if p.level >= level], SHARES[level]) >= start_s - 1e-9
            for level in range(one.level + 1)
        )
        was = all(
            latest_start([p for p in held if p.level >= level], SHARES[level]) >= start_s - 1e-9
            for level in range(one.level + 1)
        )
        # What was late before and due before the new one is not the new one's doing.
        assert demand.fits(one.level, one.slot, one.cost, start_s) is fits or not was
        demand.add(one.level, one.slot, one.cost)
        held.append(one)
        assert demand.spare(start_s, math.inf) == pytest.approx(latest_start(held, 1.0) - start_s)
    assert demand.totals[WHOLE] == sum(one.cost for one in held)


@given(changes())
def test_what_is_promised_after_all_fits(given_changes: list[tuple[str, Promise]]) -> None:
    demand = Demand(3, TOKEN_S)
    for level, share in enumerate(SHARES):
        demand.share(level, share)
    for _, one in given_changes:
        demand.add(one.level, one.slot, one.cost)
    start_s = min(0.0, *(demand._latest_starts(row).min(initial=0.0) for row in range(4)))
    by_s = demand.after_all(2, 50.0, start_s)
    assert demand.fits(2, by_s + 1e-6, 50.0, start_s)


@given(st.floats(0, 2**31), st.floats(1e-3, 1e5))
def test_a_slot_is_at_most_a_64th_before_its_deadline(now_s: float, left_s: float) -> None:
    deadline_s = now_s + left_s
    slot = Demand.slot(deadline_s, now_s)
    assert 0 <= deadline_s - slot <= max((deadline_s - now_s) / 64, 2**-9) * (1 + 1e-9)


def test_slots_stay_few_however_long_it_runs() -> None:
    demand = Demand(3, 1e-6)
    now_s = 0.0
    waiting: list[Promise] = []
    most = 0
    for n in range(20_000):
        now_s += 0.01
        level = n % 3
        one = Promise(level, Demand.slot(now_s + (0.5, 5.0, 3_600.0)[level], now_s), 10.0)
        demand.add(one.level, one.slot, one.cost)
        waiting.append(one)
        while waiting and len(waiting) > 300:
            gone = waiting.pop(0)
            demand.remove(gone.level, gone.slot, gone.cost)
        demand.spare(now_s, math.inf)
        most = max(most, len(demand))
    assert most <= 1_100


def test_density_is_the_share_of_the_engine_that_is_needed() -> None:
    demand = Demand(3, TOKEN_S)
    demand.add(1, 10.0, 2_000.0)  # two seconds in ten
    demand.add(0, 1.0, 900.0)  # not of this level
    assert demand.density(1, 0.0) == pytest.approx(0.2)
    demand.add(2, 4.0, 2_000.0)  # two in four
    assert demand.density(1, 0.0) == pytest.approx(0.5)
    assert demand.density(2, 0.0) == pytest.approx(0.5)
