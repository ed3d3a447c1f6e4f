"""What the whole shaper promises, on an engine that takes what the cost model says, and on one that does not."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shaping_plant import FIXED, ITEM, Ran, run, taken_in, work

from penstock.ranker.estimates import Estimates, Seen
from penstock.ranker.policy import DepthLimits
from penstock.ranker.shaping.cost import Prior
from penstock.ranker.shaping.depth import DepthBounds
from penstock.ranker.shaping.limits import Limits
from penstock.ranker.shaping.shaper import TrafficShaper
from penstock.ranker.shaping.work import Admitted, Batch, Deferred, Refused, Wait, Why, Work
from penstock.schemas.events import RankClass, RankQuery, RankRequest

OVERHEAD_S, TOKEN_S = 0.002, 2.5e-6  # 4,000 candidates a second: 35 ms at the floor of 131, 65 ms at 250
FLOOR_S = OVERHEAD_S + TOKEN_S * (FIXED + 131 * ITEM)
CLASSES = (RankClass.INTERACTIVE, RankClass.RECOMMENDATION, RankClass.ALERT)


def shaper(**limits: object) -> TrafficShaper:
    return TrafficShaper(Limits(**limits), Prior(OVERHEAD_S, TOKEN_S))  # type: ignore[arg-type]  # a test's own limits


@st.composite
def arrivals(draw: st.DrawFn, most: int = 60) -> list[Work]:
    """Bursts: up to ten times what the engine serves, of all classes, tenants, sizes and patiences."""
    gap_s = draw(st.sampled_from([0.002, 0.01, 0.03, 0.1]))
    now, works = 0.0, []
    for number in range(draw(st.integers(1, most))):
        now += gap_s * draw(st.sampled_from([0.0, 0.0, 0.5, 1.0, 5.0]))
        class_ = draw(st.sampled_from(CLASSES))
        works.append(
            work(
                number,
                now,
                class_,
                tenant=draw(st.sampled_from("aaabc")),
                patience_s=draw(st.sampled_from([0.02, 0.1, 0.3, 0.5, 0.7, 2.0, 5.0, 30.0])),
                wanted=draw(st.sampled_from([1, 40, 131, 500, 1_000])),
                half=draw(st.sampled_from([20.0, 100.0, 400.0])),
                key=draw(st.sampled_from([None, None, None, "x", "y"])),
                hits=draw(st.sampled_from([0.0, 0.0, 0.5, 1.0])),
            )
        )
    return works


def served_late(ran: Ran, works: list[Work]) -> list[int]:
    return [
        one.number
        for one in works
        if isinstance(told := ran.admissions[one.number], Admitted)
        and told.reason is not Why.LATE  # tried, and nothing promised
        and ran.served[one.number][0] > one.deadline_s + 1e-6
    ]


@given(arrivals(), st.sampled_from([1, 3]), st.sampled_from([2_048.0, 65_536.0]))
def test_what_is_admitted_is_served_by_its_deadline_and_nothing_is_dropped(
    works: list[Work], lanes: int, budget: float
) -> None:
    ran = run(shaper(lanes=lanes), works, overhead_s=OVERHEAD_S, token_s=TOKEN_S, lanes=lanes, budget=budget)
    tried = {number for number, told in ran.admissions.items() if told == Admitted(Why.LATE)}
    assert set(ran.served) | set(ran.expired) == taken_in(ran)
    assert set(ran.expired) <= tried
    assert served_late(ran, works) == []


@given(arrivals())
def test_what_is_deferred_is_served_by_what_it_was_promised(works: list[Work]) -> None:
    """Its release is when it must begin at the latest."""
    ran = run(shaper(), works, overhead_s=OVERHEAD_S, token_s=TOKEN_S)
    for one in works:
        admission = ran.admissions[one.number]
        if isinstance(admission, Deferred):
            assert one.class_ is not RankClass.INTERACTIVE
            least_s = 2 * OVERHEAD_S + 1.3 * TOKEN_S * one.tokens(one.least) + 0.1
            assert ran.served[one.number][0] <= admission.release_s + least_s


@given(arrivals(), st.floats(1.0, 8.0), st.data())
def test_requests_are_conserved_on_an_engine_slower_than_predicted(
    works: list[Work], factor: float, data: st.DataObject
) -> None:
    """Each that was taken in is served, or expired, or withdrawn, once; only people's works expire."""
    one = shaper()
    leavers = set(data.draw(st.lists(st.sampled_from([w.number for w in works]), max_size=5)))
    withdrawn: set[int] = set()

    def leave(ran: Ran, now_s: float) -> None:
        for number in sorted(leavers & set(ran.admissions)):
            leavers.discard(number)
            if one.withdraw(number):
                assert number in taken_in(ran)
                withdrawn.add(number)

    ran = run(one, works, overhead_s=OVERHEAD_S, token_s=TOKEN_S, slow=lambda _: factor, after=leave)
    gone = [set(ran.served), set(ran.expired), withdrawn]
    assert set().union(*gone) == taken_in(ran)
    assert sum(map(len, gone)) == len(taken_in(ran))
    by_number = {w.number: w for w in works}
    assert all(by_number[number].class_ is RankClass.INTERACTIVE for number in ran.expired)
    assert one.batch(ran.now_s, 1e6) == Wait(math.inf)
    state = one.state(ran.now_s)
    assert all(queue == replace(queue, works=0, tokens=0.0) for queue in (*state.queues.values(), state.late))


@given(arrivals(most=120), st.floats(0.05, 0.5))
def test_queues_are_bounded_in_cost(works: list[Work], bound_s: float) -> None:
    one = shaper(interactive_s=bound_s, recommendation_s=bound_s, alert_s=bound_s, late_s=bound_s)
    # The cost model's caution, and a step of what it says before the demand follows.
    most = 1.001 * bound_s / TOKEN_S

    def check(ran: Ran, now_s: float) -> None:
        state = one.state(now_s)
        assert all(queue.tokens <= most for queue in (*state.queues.values(), state.late))

    run(one, works, overhead_s=OVERHEAD_S, token_s=TOKEN_S, after=check)


@given(arrivals())
def test_a_person_s_refused_work_is_let_in_after_its_retry_after_when_nothing_else_came(works: list[Work]) -> None:
    one = shaper(late_s=0.2, alert_s=0.5, recommendation_s=0.3)
    refused: list[tuple[Work, Refused]] = []
    now_s = 0.0
    for offered in works:
        now_s = offered.arrived_s
        admission = one.offer(offered, now_s)
        if isinstance(admission, Refused) and offered.class_ is RankClass.INTERACTIVE:
            refused.append((offered, admission))
            break
    if not refused:
        return
    offered, admission = refused[0]
    assert 0 <= admission.retry_after_s < 60
    again_s = now_s + admission.retry_after_s + 1e-6
    while now_s < again_s:
        batch = one.batch(now_s, 65_536.0)
        if isinstance(batch, Wait):
            break
        seconds = OVERHEAD_S + TOKEN_S * batch.tokens
        if now_s + seconds > again_s:
            break
        now_s += seconds
        one.done(batch, now_s, seconds)
    patience_s = offered.deadline_s - offered.arrived_s
    alone = shaper().offer(replace(offered, number=10**6, arrived_s=0.0, deadline_s=patience_s), 0.0)
    again = replace(offered, number=10**6, arrived_s=again_s, deadline_s=again_s + patience_s)
    admission = one.offer(again, again_s)
    if isinstance(alone, Admitted):
        assert not isinstance(admission, Refused)


def test_nobody_starves_while_people_ask_for_more_than_there_is() -> None:
    """Alerts and late ones at their shares, whatever the load: each by its promise, and the alerts' share is kept."""
    people = [work(n, 0.01 * n) for n in range(3_000)]
    alerts = [work(10_000 + n, 0.2 * n, RankClass.ALERT, tenant="alerts") for n in range(100)]
    late = [work(20_000 + n, 1.0 * n, RankClass.RECOMMENDATION, tenant="late", patience_s=0.01) for n in range(20)]
    one = shaper(late_s=300.0)
    ran = run(one, [*people, *alerts, *late], overhead_s=OVERHEAD_S, token_s=TOKEN_S)
    assert served_late(ran, [*people, *alerts]) == []
    by_30_s = [w for w in (*alerts, *late) if w.number in ran.served and ran.served[w.number][0] < 30.0]
    assert len(by_30_s) * FLOOR_S >= 0.05 * 30.0
    assert {w.number for w in late} <= set(ran.served)


def jain(shares: list[float]) -> float:
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


@pytest.mark.parametrize("class_", CLASSES)
def test_a_tenant_that_bursts_tenfold_gets_its_share_and_no_more(class_: RankClass) -> None:
    """Ten equal tenants, each asking for more than its tenth, one for ten times as much: Jain's index of what was
    served in time."""
    count, seconds = 10, 20.0
    each_s = FLOOR_S * count / 1.5  # between two works of a tenant: one and a half times its share
    works = []
    for tenant in range(count):
        gap_s = each_s / (10 if tenant == 0 else 1)
        for n in range(int(seconds / gap_s)):
            number = tenant * 100_000 + n
            works.append(work(number, gap_s * (n + tenant / count), class_, tenant=str(tenant), patience_s=0.5))
    ran = run(shaper(recommendation_s=0.5, alert_s=0.5, late_s=0.5), works, overhead_s=OVERHEAD_S, token_s=TOKEN_S)
    by_number = {w.number: w for w in works}
    served = dict.fromkeys(map(str, range(count)), 0.0)
    for number, (end_s, _) in ran.served.items():
        if end_s <= seconds and end_s <= by_number[number].deadline_s:
            served[by_number[number].tenant] += 1.0
    assert jain(list(served.values())) >= 0.95


def test_a_burst_is_let_in_while_there_is_room() -> None:
    """A share is no bound where nobody else asks."""
    one = shaper()
    assert all(isinstance(one.offer(work(n, tenant="one"), 0.0), Admitted) for n in range(8))


def test_cache_hits_cost_nothing() -> None:
    """Twice as many are let in at once when half of their candidates are in the cache, less what prefixes cost."""

    def let_in(hits: float) -> int:
        one = shaper(burst_s=10.0)
        return sum(isinstance(one.offer(work(n, hits=hits), 0.0), Admitted) for n in range(200))

    assert 1.7 * let_in(0.0) <= let_in(0.5) <= 2.1 * let_in(0.0)


def test_identical_works_are_scored_once() -> None:
    one = shaper()
    first = work(1, key="k")
    second = work(2, key="k", patience_s=0.6)
    sooner = work(3, key="k", patience_s=0.2)
    assert one.offer(first, 0.0) == Admitted()
    assert one.offer(second, 0.0) == Admitted(Why.SHARED)
    assert one.offer(sooner, 0.0) == Admitted(), "one that is due sooner does not wait for another's turn"
    batch = one.batch(0.0, 1e9)
    assert isinstance(batch, Batch)
    parts = {part.work.number: part for part in batch.parts}
    assert set(parts) == {1, 2, 3}
    assert parts[2].reason is Why.SHARED and parts[2].depth == parts[1].depth
    assert batch.tokens == sum(parts[n].work.tokens(parts[n].depth) for n in (1, 3))


def test_when_the_first_of_identical_works_leaves_another_stands_in() -> None:
    one = shaper()
    for number in (1, 2, 3):
        one.offer(work(number, key="k"), 0.0)
    assert one.withdraw(1) and one.withdraw(3)
    assert not one.withdraw(1) and not one.withdraw(3)
    batch = one.batch(0.0, 1e9)
    assert isinstance(batch, Batch)
    assert [part.work.number for part in batch.parts] == [2]
    assert isinstance(one.batch(0.0, 1e9), Wait)


def test_followers_of_a_work_that_expired_are_tried_on_their_own() -> None:
    one = shaper()
    one.offer(work(1, key="k", patience_s=0.3), 0.0)
    one.offer(work(2, key="k", patience_s=5.0), 0.0)
    batch = one.batch(1.0, 1e9)
    assert isinstance(batch, Batch)
    assert [w.number for w in batch.expired] == [1]
    assert [part.work.number for part in batch.parts] == [2]


def test_who_followed_one_that_left_has_its_own_level_and_is_scored_once() -> None:
    one = shaper()
    one.offer(work(1, key="k", patience_s=0.6), 0.0)
    one.offer(work(2, key="k", patience_s=5.0), 0.0)
    one.offer(work(3, class_=RankClass.ALERT, key="k", patience_s=3_600.0), 0.0)
    for leaver, people, alerts in ((1, 1, 0), (2, 0, 1)):
        assert one.withdraw(leaver)
        queues = one.state(0.0).queues
        assert (queues[RankClass.INTERACTIVE].works, queues[RankClass.ALERT].works) == (people, alerts)
    batch = one.batch(4.0, 1e9)
    assert isinstance(batch, Batch) and not batch.expired
    assert [part.work.number for part in batch.parts] == [3]


def test_who_followed_one_that_expired_is_served_by_its_own_deadline() -> None:
    one = shaper()
    one.offer(work(1, key="k", patience_s=0.6), 0.0)
    one.offer(work(2, key="k", patience_s=5.0), 0.0)
    one.offer(work(3, class_=RankClass.ALERT, key="k", patience_s=3_600.0), 0.0)
    batch = one.batch(4.0, 1e9)
    assert isinstance(batch, Batch)
    assert [each.number for each in batch.expired] == [1]
    assert sorted(part.work.number for part in batch.parts) == [2, 3]


def test_a_person_and_an_alert_that_followed_one_that_left_are_in_time() -> None:
    one = shaper()
    one.offer(work(1, key="k", patience_s=0.6), 0.0)
    one.offer(work(2, key="k", patience_s=5.0), 0.0)
    one.offer(work(3, class_=RankClass.ALERT, key="k", patience_s=3_600.0), 0.0)
    assert one.withdraw(1)
    late = one.batch(5.5, 1e9)
    assert isinstance(late, Batch)
    assert [each.number for each in late.expired] == [2]
    assert [part.work.number for part in late.parts] == [3]


@pytest.mark.parametrize("class_", [RankClass.INTERACTIVE, RankClass.ALERT])
def test_depth_is_kept_down_for_people_who_were_told_to_come_back_while_something_waits(class_: RankClass) -> None:
    one = shaper(late_s=0.05, alert_s=0.1)
    number = 0
    while not isinstance(one.offer(work(number, class_=class_, patience_s=0.3), 0.0), Refused):
        number += 1
    allowed = one.state(0.0).depth
    for before in range(number):
        one.withdraw(before)
    one.offer(work(1_000, patience_s=60.0), 0.0)
    first = one.batch(0.0, 1e9)
    assert isinstance(first, Batch)
    people = class_ is RankClass.INTERACTIVE
    assert (first.parts[0].depth == 131) is people and (first.parts[0].depth >= math.floor(allowed)) is not people
    seconds = OVERHEAD_S + TOKEN_S * first.tokens
    one.done(first, seconds, seconds)
    assert isinstance(one.batch(seconds, 1e9), Wait)
    one.offer(work(1_001, seconds, patience_s=60.0), seconds)
    second = one.batch(seconds, 1e9)
    assert isinstance(second, Batch) and second.parts[0].depth >= math.floor(allowed)


def test_one_work_at_a_time_is_ranked_as_deep_as_the_controller_allows() -> None:
    """Whatever was worth more before it: nobody else is there to spend what it does not get."""
    one = shaper()
    now_s = 0.0
    for number in range(60):
        now_s += 0.3
        one.offer(work(number, now_s, patience_s=30.0, half=(400.0, 20.0)[number % 2]), now_s)
        allowed = one.state(now_s).depth
        batch = one.batch(now_s, 1e6)
        assert isinstance(batch, Batch) and batch.parts[0].depth >= math.floor(min(allowed, 900.0))
        seconds = OVERHEAD_S + TOKEN_S * batch.tokens
        now_s += seconds
        one.done(batch, now_s, seconds)


@pytest.mark.parametrize("lanes", [1, 2])
def test_load_takes_no_depth_of_an_idle_ranker_while_it_learns_what_depth_is_worth(lanes: int) -> None:
    """Differing queries, one a second, from the first: margins are flat at first and far below that once learnt."""
    depths, now_s = DepthBounds(50, 250, 2_000), 0.0
    one = TrafficShaper(Limits(depths=depths, lanes=lanes, together=1, usual_tokens=250.0), Prior(0.001, 1e-5))
    estimates = Estimates(depths, DepthLimits(250, 2_000), dear=False, clock=lambda: now_s)
    given = []
    for number in range(50):
        now_s = float(number)
        request = RankRequest(request_id=str(number), deadline=0, query=RankQuery(text=f"query {number}"))
        one.offer(estimates.work(number, request, now_s, now_s + 0.5), now_s)
        batch = one.batch(now_s, 2_000.0)
        assert isinstance(batch, Batch)
        given += [(part.depth, part.reason) for part in batch.parts]
        seconds = 0.001 + 1e-5 * batch.tokens
        now_s += seconds
        one.done(batch, now_s, seconds)
        best = (0.1, 0.5, 0.9)[number % 3]
        estimates.served(request, Seen(250, best * 0.98 ** np.arange(batch.parts[0].depth)))
    assert given == [(250, Why.SUPPLY)] * 50


def test_people_go_first_while_what_can_wait_has_time() -> None:
    one = shaper()
    one.offer(work(1, class_=RankClass.ALERT), 0.0)
    one.offer(work(2, class_=RankClass.RECOMMENDATION), 0.0)
    one.offer(work(3, class_=RankClass.INTERACTIVE), 0.0)
    order = []
    while isinstance(batch := one.batch(0.0, 0.0), Batch):
        order += [part.work.number for part in batch.parts]
    assert order == [3, 2, 1]


def test_a_deferred_work_that_would_be_in_time_after_all_goes_before_digests() -> None:
    one = shaper(alert_share=0.05, late_share=0.01)
    for number in range(20):
        one.offer(work(number, class_=RankClass.ALERT, patience_s=3_600.0), 0.0)
    hasty = [work(100 + n, class_=RankClass.RECOMMENDATION, patience_s=1.0) for n in range(40)]
    admissions = {each.number: one.offer(each, 0.0) for each in hasty}
    deferred = {number for number, admission in admissions.items() if isinstance(admission, Deferred)}
    assert deferred and len(deferred) < len(hasty)
    order, now_s = [], 0.0
    while isinstance(batch := one.batch(now_s, 0.0), Batch):
        order += [part.work.number for part in batch.parts]
        seconds = OVERHEAD_S + TOKEN_S * batch.tokens
        now_s += seconds
        one.done(batch, now_s, seconds)
    places = {number: at for at, number in enumerate(order)}
    assert sorted(places) == sorted([*range(20), *admissions])
    first_late = min(places[number] for number in deferred)
    digests_before = sum(places[number] < first_late for number in range(20))
    assert digests_before <= 0.05 / 0.95 * first_late + 1, "no more than the alerts' share"


def test_an_alert_is_promoted_when_its_slack_is_under_twice_its_service() -> None:
    one = shaper()
    one.offer(work(1, class_=RankClass.ALERT, patience_s=0.1), 0.0)
    one.offer(work(2, class_=RankClass.INTERACTIVE), 0.0)
    now_s = 0.1 - 2 * FLOOR_S
    batch = one.batch(now_s, 0.0)
    assert isinstance(batch, Batch) and batch.parts[0].work.number == 1


def test_new_bounds_of_depth_hold_at_once_and_without_a_jump() -> None:
    one = shaper()
    works = [work(n, 0.1 * n) for n in range(100)]
    seen: list[float] = []

    def change(ran: Ran, now_s: float) -> None:
        one.rebound(DepthBounds(131, 250, 300 if 4.0 < now_s < 7.0 else 1_000))
        seen.append(one.state(now_s).depth)

    run(one, works, overhead_s=OVERHEAD_S, token_s=TOKEN_S, after=change)
    assert max(seen) > 300 and seen[-1] > 300
    assert all(later / sooner < 1.5 for sooner, later in itertools.pairwise(seen))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"alert_share": 0.5}, "alert_share is 0.5: expected 0.05 to 0.10"),
        ({"late_share": 0.09}, "late_share is 0.09"),
        ({"lanes": 0}, "lanes is 0 and together 4096: expected at least 1"),
        ({"together": 0}, "together 0: expected at least 1"),
        ({"delay_s": 0.3}, "expected them to rise"),
        ({"batch_s": 0.0}, "batch_s is 0.0: expected more than 0"),
        ({"use": 1.0}, "expected between 0 and 1"),
        ({"weights": {"a": 0.0}}, "weight of tenant 'a' is 0.0"),
    ],
)
def test_limits_out_of_bounds_are_refused(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        shaper(**wrong)


def test_an_engine_that_is_believed_too_slow_is_tried_by_whoever_comes_alone_and_heals() -> None:
    shaper = TrafficShaper(Limits(), Prior(3.0, 1e-3))  # so it is believed; in truth a batch takes 50 ms
    reasons = []
    for number in range(60):
        now_s = float(number)
        reasons.append(shaper.offer(work(number, now_s), now_s).reason)
        beside = shaper.offer(work(1_000 + number, now_s), now_s)
        assert number or isinstance(beside, Refused)  # one is enough to learn by
        while isinstance(batch := shaper.batch(now_s, 65_536.0), Batch):
            assert not batch.expired
            now_s += 0.05
            shaper.done(batch, now_s, 0.05)
    assert reasons[0] is Why.LATE and reasons[-1] is Why.FITS
