"""Daily caps in a real Redis: never exceeded, whatever is asked again and in which order; late when Redis is away."""

import threading

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.infra.settings import RedisSettings
from penstock.jobs.operators.ledger import Capped, Claim, Ledger, LedgerAway, connect

TODAY, YESTERDAY, TOMORROW = "2026-11-21", "2026-11-20", "2026-11-22"


def claim(alert: str, *, cap=2, today=TODAY, yesterday=YESTERDAY, uncapped=1, capped=(), person="p") -> Claim:
    return Claim("t", person, alert, cap, today, yesterday, uncapped, tuple(capped))


def capped(subscription: str, cap: int) -> Capped:
    return Capped(subscription, cap, TODAY, YESTERDAY)


@pytest.fixture
def ledger(redis_url):
    ledger = Ledger(connect(RedisSettings(url=redis_url)), "x", patience_s=5)
    yield ledger
    ledger.close()


def test_a_person_gets_as_many_as_the_cap_and_the_same_ones_again(ledger):
    granted = [ledger.claim(claim(name)).person for name in ("a", "b", "c", "a", "c", "b")]
    assert granted == [True, True, False, True, False, True]
    assert ledger.claim(claim("c", person="q")).person


def test_a_new_day_has_room_and_a_replay_across_midnight_takes_none_of_it(ledger):
    for name in ("a", "b"):
        ledger.claim(claim(name))
    tomorrow = {"today": TOMORROW, "yesterday": TODAY}
    granted = [ledger.claim(claim(name, **tomorrow)).person for name in ("a", "b", "c", "d", "e")]
    assert granted == [True, True, True, True, False]


def test_a_full_subscription_is_left_out_and_counts_nothing_against_the_person(ledger):
    first = ledger.claim(claim("a", uncapped=0, capped=[capped("s", 1)]))
    assert (first.person, first.full) == (True, frozenset())
    second = ledger.claim(claim("b", uncapped=0, capped=[capped("s", 1)]))
    assert second.full == {"s"}
    # The person has room for one more, which `b` has not taken; beside others the full one is left out.
    third = ledger.claim(claim("c", uncapped=1, capped=[capped("s", 1), capped("r", 1)]))
    assert (third.person, third.full) == (True, {"s"})
    assert not ledger.claim(claim("d")).person


def test_a_full_person_takes_nothing_of_a_subscription(ledger):
    ledger.claim(claim("a", cap=1))
    assert not ledger.claim(claim("b", cap=1, uncapped=0, capped=[capped("s", 1)])).person
    assert ledger.claim(claim("c", cap=5, uncapped=0, capped=[capped("s", 1)])).full == frozenset()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    names=st.lists(st.sampled_from("abcdefgh"), max_size=12, unique=True),
    cap=st.integers(1, 4),
    split=st.integers(0, 12),
    random=st.randoms(),
)
def test_a_replay_in_another_order_neither_doubles_nor_substitutes(ledger, redis_url, names, cap, split, random):
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    before = {name for name in names[:split] if ledger.claim(claim(name, cap=cap)).person}
    again = list(names)
    random.shuffle(again)
    after = {name for name in again if ledger.claim(claim(name, cap=cap)).person}
    assert before <= after
    assert len(after) == min(cap, len(names))


def test_keys_go_away_by_themselves_and_share_a_slot(ledger, redis_url):
    ledger.claim(claim("a", capped=[capped("s", 3)]))
    with redis.Redis.from_url(redis_url) as client:
        keys = client.keys("x:*")
        assert len(keys) == 2
        assert all(0 < client.ttl(key) <= 2 * 86_400 for key in keys)
        assert len({key[key.index(b"{") : key.index(b"}")] for key in keys}) == 1


def test_while_redis_is_away_the_claim_waits_and_is_then_answered(redis_server):
    ledger = Ledger(connect(RedisSettings(url=redis_server.url)), "x", patience_s=30)
    assert ledger.claim(claim("a", cap=1)).person
    redis_server.stop()
    answers = []
    asking = threading.Thread(target=lambda: answers.append(ledger.claim(claim("b", cap=1))))
    asking.start()
    redis_server.start()
    asking.join(30)
    assert len(answers) == 1  # the old counts went with this Redis, which keeps none on disk
    ledger.close()


def test_patience_ends_and_says_what_to_do(redis_server):
    redis_server.stop()
    now, pauses = [0.0], []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        now[0] += seconds

    ledger = Ledger(connect(RedisSettings(url=redis_server.url)), "x", 10, clock=lambda: now[0], pause=pause)
    with pytest.raises(LedgerAway, match="bring it back"):
        ledger.claim(claim("a"))
    assert 8 < sum(pauses) <= 10
    ledger.close()
