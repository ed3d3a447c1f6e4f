"""The depth on an engine in virtual time: how it settles, and what it does at its bounds."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shaping_plant import FIXED, ITEM, run, work

from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.depth import PERIOD_S, SLEW_UP, DepthBounds, DepthController
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.load import Arrivals, feed_forward
from penstock.ranker.shaping.shaper import TrafficShaper
from penstock.ranker.shaping.work import Why, Work

OVERHEAD_S, TOKEN_S = 0.0002, 2.5e-7
CAPACITY = 1 / (OVERHEAD_S + TOKEN_S * (FIXED + 250 * ITEM))  # works a second at a depth of 250
CHANGE_S, END_S = 10.0, 25.0
SETTLE_S, WITHIN, OVERSHOOT = 3.0, 0.10, 0.10


def evenly(rate: Callable[[float], float]) -> list[Work]:
    now, works = 0.0, []
    while now < END_S:
        works.append(work(len(works), now, tenant=str(len(works) % 7)))
        now += 1 / rate(now)
    return works


DISTURBANCES: dict[str, tuple[float, Callable[[float], float], Callable[[float], float]]] = {
    "step up": (CHANGE_S, lambda t: 0.6 if t < CHANGE_S else 1.2, lambda t: 1.0),
    "step down": (CHANGE_S, lambda t: 1.2 if t < CHANGE_S else 0.6, lambda t: 1.0),
    "ramp": (CHANGE_S + 5, lambda t: 0.6 + 0.12 * min(max(t - CHANGE_S, 0.0), 5.0), lambda t: 1.0),
    "burst": (CHANGE_S + 2, lambda t: 1.6 if CHANGE_S <= t < CHANGE_S + 2 else 0.7, lambda t: 1.0),
    "slowdown": (CHANGE_S, lambda t: 0.45, lambda t: 1.0 if t < CHANGE_S else 3.0),
}


@pytest.mark.parametrize("name", DISTURBANCES)
def test_it_settles_within_3_s_with_little_overshoot(name: str) -> None:
    """Settled: within a tenth of where it ends, for good; overshoot: past that, over 0.3 s, as a part of it."""
    changed_s, load, slow = DISTURBANCES[name]
    shaper = TrafficShaper(Limits(), Prior(OVERHEAD_S, TOKEN_S))
    ran = run(
        shaper,
        evenly(lambda t: CAPACITY * load(t)),
        overhead_s=OVERHEAD_S,
        token_s=TOKEN_S,
        slow=slow,
        until_s=END_S,
        watch_s=0.05,
    )
    at, depth = np.array(ran.depths).T
    final = float(np.median(depth[at > END_S - 5]))
    before = float(np.median(depth[(at > changed_s - 1) & (at < changed_s)]))
    after = at >= changed_s
    off = after & (np.abs(depth / final - 1) > WITHIN)
    settled_s = float(at[off].max()) - changed_s if off.any() else 0.0
    smooth = np.convolve(depth[after], np.ones(6) / 6, "valid")
    overshoot = max(0.0, (smooth.max() - final) if final > before else (final - smooth.min())) / final
    assert settled_s <= SETTLE_S, f"{settled_s:.2f} s to {final:.0f}"
    assert overshoot <= OVERSHOOT, f"{overshoot:.2f} past {final:.0f}"
    assert not ran.expired


bounds = DepthBounds(131, 250, 1_000)


def stepped(controller: DepthController, seconds: float, delay_s: float, feed: float, now_s: float = 0.0) -> float:
    for n in range(1, int(seconds / PERIOD_S) + 1):
        controller.step(now_s + n * PERIOD_S, delay_s, feed)
    return now_s + seconds


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(1e-3, 1e9)), max_size=60))
def test_it_is_always_within_its_bounds_and_never_rises_faster_than_its_slew(steps: list[tuple[float, float]]) -> None:
    controller = DepthController(bounds, 0.1, 0.0)
    depth = controller.depth
    for n, (delay_s, feed) in enumerate(steps):
        was, depth = depth, controller.step((n + 1) * PERIOD_S, delay_s, feed)
        assert bounds.floor - 1e-6 <= depth <= bounds.ceiling + 1e-6
        # The slew, and what the loop itself may move: P · e, D and I.
        assert math.log(depth / was) <= SLEW_UP * PERIOD_S + 0.25


@pytest.mark.parametrize(("delay_s", "feed", "reason"), [(5.0, 1.0, Why.FLOOR), (0.0, math.inf, Why.CEILING)])
def test_an_hour_at_a_bound_does_not_wind_it_up(delay_s: float, feed: float, reason: Why) -> None:
    wound, fresh = (DepthController(bounds, 0.1, 0.0) for _ in range(2))
    stepped(fresh, 5.0, delay_s, feed)
    now = stepped(wound, 3_600.0, delay_s, feed)
    assert wound.reason is fresh.reason is reason
    stepped(fresh, 1.0, 0.1, 400.0, 5.0)
    stepped(wound, 1.0, 0.1, 400.0, now)
    assert wound.depth == pytest.approx(fresh.depth, rel=0.06)


def test_new_bounds_make_no_jump_but_into_them() -> None:
    controller = DepthController(bounds, 0.1, 0.0)
    now = stepped(controller, 20.0, 0.1, 400.0)
    depth = controller.depth
    controller.rebound(DepthBounds(100, 250, 2_000))
    assert controller.depth == depth
    stepped(controller, PERIOD_S, 0.1, 400.0, now)
    assert controller.depth == pytest.approx(depth, rel=0.06)
    controller.rebound(DepthBounds(131, 200, 300))
    assert controller.depth == pytest.approx(300)
    controller.rebound(bounds)
    depths = [controller.depth]
    for n in range(20):
        depths.append(controller.step(now + 1 + (n + 1) * PERIOD_S, 0.1, 400.0))
    assert all(later / sooner <= math.exp(SLEW_UP * PERIOD_S * 11) for sooner, later in itertools.pairwise(depths))
    assert depths[-1] == pytest.approx(depth, rel=0.1)


def test_down_at_once_and_up_slowly() -> None:
    controller = DepthController(bounds, 0.1, 0.0)
    now = stepped(controller, 10.0, 0.1, 900.0)
    high = controller.depth
    assert controller.step(now + PERIOD_S, 0.1, 150.0) < 180
    assert controller.step(now + 2 * PERIOD_S, 0.1, 900.0) < high / 2


def test_what_may_be_chance_moves_it_less_than_what_is_no_chance() -> None:
    controller = DepthController(bounds, 0.1, 0.0)
    now = stepped(controller, 10.0, 0.1, 500.0)
    held = controller.depth
    assert controller.step(now + PERIOD_S, 0.1, 400.0) > 0.9 * held, "a fifth less, once"
    assert controller.step(now + 2 * PERIOD_S, 0.1, 200.0) == pytest.approx(200.0, rel=0.05)


@pytest.mark.parametrize("wrong", [(0, 1, 2), (3, 2, 4), (1, 5, 4)])
def test_bounds_that_are_none_are_refused(wrong: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="expected 1 <= floor <= start <= ceiling"):
        DepthBounds(*wrong)


@pytest.mark.parametrize("rate", [5.0, 100.0])
def test_a_rate_stands_still_where_arrivals_are_even(rate: float) -> None:
    arrivals = Arrivals(0.0)
    seen = []
    for n in range(int(10 * rate)):
        arrivals.came(n / rate, 10.0, 2.0)
        arrivals.step((n + 0.7) / rate)
        seen.append(arrivals.works)
    late = seen[int(5 * rate) :]
    assert max(late) / min(late) < 1.01 and late[-1] == pytest.approx(rate, rel=0.01)
    assert (arrivals.fixed, arrivals.item) == (pytest.approx(10 * rate, rel=0.01), pytest.approx(2 * rate, rel=0.01))
    arrivals.step(10.0 + 5.0)
    assert arrivals.works < rate / 3, "nothing came for five seconds"


def test_the_feed_forward_takes_the_share_it_is_given() -> None:
    depth = feed_forward(0.8, 1e-5, 20_000.0, 100.0)
    assert 1e-5 * (20_000 + 100 * depth) == pytest.approx(0.8)
    assert feed_forward(0.1, 1e-5, 20_000.0, 100.0) == 0.0
    assert feed_forward(0.8, 1e-5, 0.0, 0.0) == math.inf
