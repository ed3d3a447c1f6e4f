"""The score cache on a real Redis, and single-flight under threads."""

import struct
import threading
import time

import numpy as np
import pytest
import redis

from penstock.infra.settings import RedisSettings
from penstock.infra.telemetry import DEGRADED
from penstock.ranker.cache import SLOW_RUN, SLOW_S, Computed, PairVersion, Patience, ScoreCache, pair_keys
from penstock.ranker.errors import RedisAway
from penstock.ranker.redis_link import Gate, RedisLink, connect
from penstock.ranker.single_flight import SingleFlight


def cache_on(url):
    return ScoreCache(RedisLink(connect(RedisSettings(url=url)), time.monotonic), "t", 900, time.monotonic)


def pairs(*names, version=1, revision=0):
    return [PairVersion("default", name, version, revision) for name in names]


class Model:
    """Scores a posting by its place; remembers what it was asked."""

    def __init__(self, keep=True):
        self.asked = []
        self.keep = keep

    def __call__(self, positions):
        self.asked += positions
        rows = np.array([[0.5 + at / 100, at] for at in positions], dtype=np.float64).reshape(-1, 2)
        return Computed(rows, np.full(len(positions), self.keep))


def test_what_was_scored_is_found_again_in_order_with_its_parts(redis_url):
    cache, model = cache_on(redis_url), Model()
    first = cache.rows("m", 2, b"q", pairs("a", "b", "c"), model, 1)
    assert (first.hits, first.degraded, model.asked) == (0, (), [0, 1, 2])
    again = cache_on(redis_url).rows("m", 2, b"q", pairs("c", "x", "a"), model, 1)
    assert again.hits == 2
    assert model.asked == [0, 1, 2, 1]
    assert again.rows.tolist() == [[0.52, 2], [0.51, 1], [0.5, 0]]


def test_another_query_model_version_or_tenant_is_another_score():
    [base] = pair_keys("t", "m", b"q", pairs("a"))
    others = [
        *pair_keys("t", "m2", b"q", pairs("a")),
        *pair_keys("t", "m", b"q2", pairs("a")),
        *pair_keys("t", "m", b"q", pairs("a", version=2)),
        *pair_keys("t", "m", b"q", pairs("a", revision=1)),
        *pair_keys("t", "m", b"q", [PairVersion("other", "a", 1, 0)]),
        *pair_keys("t", "mq", b"", pairs("a")),
        *pair_keys("t", "m", b"q", [PairVersion("defaul", "ta", 1, 0)]),
    ]
    assert len({base, *others}) == 1 + len(others)


def test_scores_expire_and_those_of_one_request_apart(redis_url):
    some = pairs(*(str(number) for number in range(50)))
    cache_on(redis_url).rows("m", 2, b"q", some, Model(), 1)
    client = redis.Redis.from_url(redis_url)
    lives_ms = [client.pttl(key) for key in pair_keys("t", "m", b"q", some)]
    assert min(lives_ms) > 780_000 and max(lives_ms) <= 900_000
    assert max(lives_ms) - min(lives_ms) > 20_000  # of 90,000: fifty draws are closer once in many ages


@pytest.mark.parametrize(("chance", "life_ms"), [(0.0, 900_000), (0.5, 855_000)])
def test_the_time_to_live_is_shortened_by_chance_and_never_longer(redis_url, chance, life_ms):
    link = RedisLink(connect(RedisSettings(url=redis_url)), time.monotonic)
    ScoreCache(link, "t", 900, time.monotonic, lambda: chance).rows("m", 2, b"q", pairs("a"), Model(), 1)
    [key] = pair_keys("t", "m", b"q", pairs("a"))
    assert life_ms - 60_000 < redis.Redis.from_url(redis_url).pttl(key) <= life_ms


@pytest.mark.parametrize("damage", [b"", b"garbage", struct.pack("<2d", float("nan"), 1), struct.pack("<2d", 1.5, 1)])
def test_a_damaged_value_is_a_miss_and_is_healed(redis_url, damage):
    cache, model, [key] = cache_on(redis_url), Model(), pair_keys("t", "m", b"q", pairs("a"))
    redis.Redis.from_url(redis_url).set(key, damage)
    assert cache.rows("m", 2, b"q", pairs("a"), model, 1).rows.tolist() == [[0.5, 0]]
    assert cache.rows("m", 2, b"q", pairs("a"), model, 1).hits == 1
    assert model.asked == [0]


def test_what_may_not_be_kept_is_not(redis_url):
    cache, model = cache_on(redis_url), Model(keep=False)
    cache.rows("m", 2, b"q", pairs("a"), model, 1)
    cache.rows("m", 2, b"q", pairs("a"), model, 1)
    assert model.asked == [0, 0]


def test_without_redis_scores_are_computed_and_the_answer_says_so(redis_server, until):
    cache, model = cache_on(redis_server.url), Model()
    redis_server.stop()
    cached = cache.rows("m", 2, b"q", pairs("a", "b"), model, 1)
    assert cached.rows.tolist() == [[0.5, 0], [0.51, 1]]
    assert cached.hits == 0
    assert [reason.split(":")[0] for reason in cached.degraded] == ["score cache"]
    redis_server.start()
    until(lambda: not cache.rows("m", 2, b"q", pairs("a", "b"), model, 1).degraded)
    assert cache.rows("m", 2, b"q", pairs("a", "b"), model, 1).hits == 2


class SlowLink:
    """A real link whose answers take as long as they are told, by a clock of its own."""

    def __init__(self, url):
        self._link = RedisLink(connect(RedisSettings(url=url)), self.clock)
        self.now = 0.0
        self.takes = 0.0
        self.asked = 0

    def clock(self):
        return self.now

    def run(self, command):
        self.asked += 1
        self.now += self.takes
        return self._link.run(command)


def bypasses():
    return DEGRADED.labels("ranker", "score cache: slow")._value.get()


def test_a_slow_redis_is_bypassed_counted_and_tried_again(redis_url):
    link, model = SlowLink(redis_url), Model()
    cache = ScoreCache(link, "t", 900, link.clock)
    ask = lambda: cache.rows("m", 2, b"q", pairs("a", "b"), model, 1)  # noqa: E731
    ask()
    link.takes = 2 * SLOW_S
    while link.asked < 2 + SLOW_RUN:  # one read and one write before
        assert ask().hits == 2
    before, asked = bypasses(), link.asked
    cached = ask()
    assert cached.rows.tolist() == [[0.5, 0], [0.51, 1]]
    assert cached.hits == 0
    assert cached.degraded == ("score cache: bypassed, Redis took 200 ms to answer",)
    assert link.asked == asked
    assert bypasses() == before + 2  # neither read nor written
    link.takes = 0.0
    link.now += 0.5
    assert ask().hits == 2
    assert ask().degraded == ()


def test_a_slow_answer_now_and_then_is_waited_for():
    patience = Patience()
    for number in range(100):
        slow = number % SLOW_RUN != 0
        patience.answered(float(number), 2 * SLOW_S if slow else 0.0)
        assert patience.waits(float(number))


def test_a_redis_that_does_not_answer_holds_a_request_for_its_timeout_and_no_longer(redis_server):
    link = RedisLink(connect(RedisSettings(url=redis_server.url)), time.monotonic)
    cache, model = ScoreCache(link, "t", 900, time.monotonic), Model()
    client = redis.Redis.from_url(redis_server.url)
    cache.rows("m", 2, b"q", pairs("a"), model, 1)
    away = DEGRADED.labels("ranker", "score cache")._value.get()
    client.execute_command("CLIENT", "PAUSE", 20_000, "ALL")
    cached = cache.rows("m", 2, b"q", pairs("a"), model, 1)
    assert cached.rows.tolist() == [[0.5, 0]]
    assert [reason.split(":")[0] for reason in cached.degraded] == ["score cache"]
    assert DEGRADED.labels("ranker", "score cache")._value.get() == away + 2  # the read timed out, the write was spared


def test_the_gate_asks_once_per_pause():
    gate = Gate(0.5)
    assert gate.is_open(10.0)
    gate.failed(10.0, "refused")
    assert not gate.is_open(10.4)
    assert gate.is_open(10.5)
    gate.failed(10.5, "refused")
    gate.succeeded()
    assert gate.is_open(10.6)


def test_a_closed_gate_raises_with_the_reason_and_background_work_may_insist(tmp_path):
    asked = []

    def ping(client):
        asked.append(1)
        return client.ping()

    link = RedisLink(connect(RedisSettings(url=f"unix://{tmp_path}/none.sock")), clock=lambda: 0.0)
    for insist in (False, False, True):
        with pytest.raises(RedisAway, match=r"none\.sock"):
            link.run(ping, insist=insist)
    assert len(asked) == 2
    assert not link.up


# --- single flight -------------------------------------------------------------------------------------------------


def test_concurrent_identical_requests_compute_once(redis_url):
    cache, started, release, calls = cache_on(redis_url), threading.Event(), threading.Event(), []

    def compute(positions):
        calls.append(positions)
        started.set()
        assert release.wait(20)
        return Model()(positions)

    results = []

    def ask():
        results.append(cache.rows("m", 2, b"q", pairs("a", "b"), compute, 20))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    assert started.wait(20)
    release.set()
    for thread in threads:
        thread.join(20)
    assert calls == [[0, 1]]
    assert sorted(result.hits for result in results) == [0] + [2] * 7
    assert all(result.rows.tolist() == [[0.5, 0], [0.51, 1]] for result in results)


def test_followers_of_a_failed_leader_lead_themselves(until):
    flights, started, release = SingleFlight(time.monotonic), threading.Event(), threading.Event()
    outcomes = []

    def fails(keys):
        started.set()
        assert release.wait(20)
        raise RuntimeError("broken")

    def lead():
        try:
            flights.get(["k"], fails, 20)
        except RuntimeError as error:
            outcomes.append(str(error))

    leader = threading.Thread(target=lead)
    leader.start()
    assert started.wait(20)
    follower = threading.Thread(
        target=lambda: outcomes.append(flights.get(["k"], lambda keys: dict.fromkeys(keys, 7), 20).values)
    )
    follower.start()
    release.set()
    leader.join(20)
    follower.join(20)
    assert sorted(outcomes, key=str) == ["broken", {"k": 7}]
    assert len(flights) == 0


def test_a_follower_waits_no_longer_than_it_may():
    flights, started, release = SingleFlight(time.monotonic), threading.Event(), threading.Event()

    def slow(keys):
        started.set()
        release.wait(20)
        return dict.fromkeys(keys, 1)

    leader = threading.Thread(target=flights.get, args=(["k"], slow, 20))
    leader.start()
    assert started.wait(20)
    with pytest.raises(TimeoutError):
        flights.get(["k"], slow, 0.01)
    release.set()
    leader.join(20)


def test_overlapping_sets_in_opposite_orders_end_and_agree():
    flights, computed, lock = SingleFlight(time.monotonic), [], threading.Lock()

    def compute(keys):
        with lock:
            computed.extend(keys)
        return {key: key * 10 for key in keys}

    wrong = []

    def ask(keys):
        for _ in range(50):
            if flights.get(keys, compute, 20).values != {key: key * 10 for key in keys}:
                wrong.append(keys)

    threads = [threading.Thread(target=ask, args=(list(range(20))[:: 1 if i % 2 else -1],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert not any(thread.is_alive() for thread in threads)
