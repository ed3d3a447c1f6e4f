import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.ranker.shaping.admission import FairShares, StandingQueue


@given(st.lists(st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2, max_size=6), st.integers(0, 99))
def test_tenants_that_always_ask_are_let_in_by_weight(weights: list[float], seed: int) -> None:
    """Each asks until it is refused, in a random order, works of random cost: per weight alike, but for the bucket and
    a work each."""
    draw, bucket, dearest = random.Random(seed), 50.0, 20
    tenants = [str(n) for n in range(len(weights))]
    shares = FairShares(dict(zip(tenants, weights, strict=True)))
    let_in = dict.fromkeys(tenants, 0.0)
    queue: list[tuple[str, float]] = []
    for _ in range(300):
        for tenant in draw.sample(tenants, len(tenants)):
            while shares.ahead(tenant) <= bucket * shares.weight(tenant):
                cost = float(draw.randint(1, dearest))
                shares.charge(tenant, cost)
                queue.append((tenant, cost))
                let_in[tenant] += cost
        for _ in range(min(10, len(queue))):  # in whatever order they are served
            shares.served(*queue.pop(draw.randrange(len(queue))))
    per_weight = [let_in[tenant] / shares.weight(tenant) for tenant in tenants]
    assert max(per_weight) - min(per_weight) <= bucket + dearest / min(weights)
    assert sum(let_in.values()) > 1_000


def test_what_was_free_is_not_held_against_a_tenant() -> None:
    shares = FairShares({})
    for _ in range(100):
        shares.charge("a", 10.0, most_ahead=30.0)
    assert shares.ahead("a") <= 30.0
    shares.charge("a", 10.0)
    assert shares.ahead("a") <= 40.0


def test_who_was_away_saved_nothing() -> None:
    shares = FairShares({})
    shares.charge("a", 10.0)
    shares.charge("b", 10.0)
    shares.served("a", 10.0)
    shares.served("b", 10.0)
    for _ in range(50):
        shares.charge("b", 10.0)
        shares.served("b", 10.0)
    shares.charge("b", 10.0)
    shares.charge("a", 10.0)
    assert shares.ahead("a") == pytest.approx(10.0)


def test_a_tenant_with_works_waiting_keeps_its_place() -> None:
    shares = FairShares({})
    shares.charge("slow", 10.0)
    for _ in range(50):
        shares.charge("fast", 10.0)
        shares.served("fast", 10.0)
    assert shares.share("fast") == 0.5


def test_nothing_is_kept_of_tenants_that_are_not_active() -> None:
    shares = FairShares({})
    for n in range(5_000):
        shares.charge(str(n), 10.0)
        shares.served(str(n), 10.0)
    shares.charge("last", 1.0)
    shares.served("last", 1e9)
    assert len(shares._finish) <= 1 and len(shares._ends) <= 70 and not shares._waiting


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_weights_are_checked(weight: float) -> None:
    with pytest.raises(ValueError, match="expected a finite number above 0"):
        FairShares({"a": weight})


def codel_drops(sojourns: list[tuple[float, float]], target_s: float, interval_s: float) -> list[float]:
    """RFC 8289, section 5: when its dequeue drops, for a queue that never empties."""
    first_above, dropping, drop_next, count, last_count = 0.0, False, 0.0, 0, 0
    drops = []
    for now, sojourn in sojourns:
        ok = False
        if sojourn < target_s:
            first_above = 0.0
        elif first_above == 0.0:
            first_above = now + interval_s
        elif now >= first_above:
            ok = True
        if dropping:
            if not ok:
                dropping = False
            elif now >= drop_next:
                drops.append(now)
                count += 1
                drop_next += interval_s / count**0.5
        elif ok:
            drops.append(now)
            dropping = True
            delta = count - last_count
            count = delta if delta > 1 and now - drop_next < 16 * interval_s else 1
            drop_next = now + interval_s / count**0.5
            last_count = count
    return drops


@given(st.lists(st.tuples(st.sampled_from([0.1, 0.5, 4.0]), st.booleans()), min_size=1, max_size=12))
def test_it_refuses_about_as_often_as_codel_drops(stretches: list[tuple[float, bool]]) -> None:
    """Stretches above and below the target; a work leaves and another comes every 10 ms."""
    now, sojourns = 0.0, []
    for length, above in stretches:
        for _ in range(int(length / 0.01)):
            now += 0.01
            sojourns.append((now, 0.4 if above else 0.05))
    queue = StandingQueue(0.1, 0.5)
    refused = []
    for at, sojourn in sojourns:
        queue.left(sojourn, at, waiting=5)
        if queue.refuses(sojourn, at):
            refused.append(at)
    drops = codel_drops(sojourns, 0.1, 0.5)
    assert abs(len(refused) - len(drops)) <= 1 + len(drops) // 4
    assert (refused[:1] or [0.0])[0] == pytest.approx((drops[:1] or [0.0])[0], abs=0.011)


def test_nobody_is_refused_while_the_queue_is_short_or_empties() -> None:
    queue = StandingQueue(0.1, 0.5)
    for n in range(1_000):
        queue.left(0.4, 0.01 * n, waiting=0 if n % 40 == 0 else 5)
        assert not queue.refuses(0.4, 0.01 * n)


@pytest.mark.parametrize(("target_s", "interval_s"), [(0.0, 1.0), (1.0, 1.0), (2.0, 1.0)])
def test_codels_times_are_checked(target_s: float, interval_s: float) -> None:
    with pytest.raises(ValueError, match="expected 0 < target < interval"):
        StandingQueue(target_s, interval_s)
