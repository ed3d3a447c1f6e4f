"""A Redis that fails, hangs or says the wrong thing: scores and postings stay right, and what was spared is counted."""

import hashlib
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.infra.settings import RedisSettings
from penstock.infra.telemetry import DEGRADED
from penstock.ranker.cache import Computed, PairVersion, ScoreCache, pair_keys, read_row, written_row
from penstock.ranker.errors import RedisAway
from penstock.ranker.feature_store import Batch, FeatureStore
from penstock.ranker.redis_link import RedisLink, connect, read_values
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate

NAMES = [str(number) for number in range(12)]
QUERIES = [b"nurse", b"welder"]


def count(what):
    return DEGRADED.labels("ranker", what)._value.get()


def true_row(query, name):
    """What a model says of a pair; no two say the same."""
    digest = hashlib.blake2b(query + name.encode(), digest_size=8).digest()
    return [int.from_bytes(digest, "little") / 2**64, float(int(name))]


class Faulty:
    """A client of a real Redis that fails at random, or gives the answer to another question."""

    def __init__(self, url, seed, share):
        self._client = redis.Redis.from_url(url)
        self._random = random.Random(seed)
        self._share = share
        self._earlier = [b"", None]

    def mget(self, keys):
        fault = self._fault("refused", "late", "protocol", "another's", "shuffled", "short", "damaged", "a number")
        if fault == "a number":
            return 12
        found = self._client.mget(keys)
        earlier, self._earlier = self._earlier, list(found)
        if fault == "late":
            raise redis.TimeoutError("timeout reading from socket")
        if fault == "another's":
            return earlier
        if fault == "shuffled":
            self._random.shuffle(found)
        if fault == "short":
            return found[:-1]
        if fault == "damaged":
            return [self._damaged(value) for value in found]
        return found

    def pipeline(self, transaction):
        return _FaultyPipeline(self._client.pipeline(transaction=transaction), self._fault("refused", "late", "half"))

    def _fault(self, *faults):
        if self._random.random() >= self._share:
            return ""
        fault = self._random.choice(faults)
        if fault == "refused":
            raise redis.ConnectionError("connection refused")
        if fault == "protocol":
            raise ValueError("invalid literal for int() with base 10: b'zz'")  # as the client's parser has it
        return fault

    def _damaged(self, value):
        if not value:
            return value
        at = self._random.randrange(8 * len(value))
        return (int.from_bytes(value, "little") ^ (1 << at)).to_bytes(len(value), "little")


class _FaultyPipeline:
    def __init__(self, pipeline, fault):
        self._pipeline = pipeline
        self._fault = fault
        self._queued = 0

    def psetex(self, *of):
        self._queued += 1
        if self._fault != "half" or self._queued % 2:
            self._pipeline.psetex(*of)

    def execute(self):
        self._pipeline.execute()
        if self._fault:
            raise redis.TimeoutError("timeout reading from socket")


class CountedLink(RedisLink):
    """By a clock that goes on by the half of a pause with each look, so that the gate opens again and again."""

    def __init__(self, client):
        self.now = 0.0
        self.spared = 0
        self._counting = threading.Lock()
        super().__init__(client, self.tick)

    def tick(self):
        with self._counting:
            self.now += 0.25
            return self.now

    def run(self, command, **options):
        try:
            return super().run(command, **options)
        except RedisAway:
            with self._counting:
                self.spared += 1
            raise


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_whatever_redis_does_every_caller_gets_every_pairs_own_score(_shared_redis, seed, share):
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()
    link = CountedLink(Faulty(_shared_redis.url, seed, share))
    cache = ScoreCache(link, "t", 900, time.monotonic)
    before = count("score cache")

    def ask(number):
        rng = random.Random(seed + number)
        said = 0
        for _ in range(12):
            query, names = rng.choice(QUERIES), rng.choices(NAMES, k=rng.randint(1, 9))
            pairs = [PairVersion("default", name, 1, 0) for name in names]

            def compute(positions, query=query, names=names):
                rows = np.array([true_row(query, names[at]) for at in positions])
                return Computed(rows, np.full(len(positions), True))

            cached = cache.rows("m", 2, query, pairs, compute, 20)
            assert cached.rows.tolist() == [true_row(query, name) for name in names]
            said += bool(cached.degraded)
        return said

    with ThreadPoolExecutor(4) as pool:
        said = sum(pool.map(ask, range(4)))
    assert count("score cache") - before == link.spared
    assert bool(said) == bool(link.spared)
    if share == 0.0:
        assert cache.hit_rate > 0.5


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 8 * 36 - 1))
def test_a_row_is_read_as_it_was_written_under_its_key_alone_and_undamaged(row, bit):
    row = tuple(row)
    value = written_row("t:score:a", row)
    assert read_row("t:score:a", value, len(row)) == row
    assert read_row("t:score:b", value, len(row)) is None
    assert read_row("t:score:a", value, len(row) + 1) is None
    bit %= 8 * len(value)
    damaged = (int.from_bytes(value, "little") ^ (1 << bit)).to_bytes(len(value), "little")
    assert read_row("t:score:a", damaged, len(row)) is None


def test_a_number_that_is_no_probability_is_not_read_whoever_wrote_it():
    for row in [(1.5, 0.0), (float("nan"), 0.0), (0.5, float("inf"))]:
        assert read_row("k", written_row("k", row), 2) is None


def test_a_value_of_another_pair_is_counted_scored_anew_and_healed(redis_url):
    link = RedisLink(connect(RedisSettings(url=redis_url)), time.monotonic)
    cache, client = ScoreCache(link, "t", 900, time.monotonic), redis.Redis.from_url(redis_url)
    pairs = [PairVersion("default", name, 1, 0) for name in "12"]

    def compute(positions):
        return Computed(np.array([true_row(b"q", "12"[at]) for at in positions]), np.full(len(positions), True))

    expected = cache.rows("m", 2, b"q", pairs, compute, 1).rows.tolist()
    one, other = pair_keys("t", "m", b"q", pairs)
    client.copy(one, other, replace=True)
    before = count("score cache: damaged value")
    again = cache.rows("m", 2, b"q", pairs, compute, 1)
    assert (again.rows.tolist(), again.hits) == (expected, 1)
    assert count("score cache: damaged value") == before + 1
    assert cache.rows("m", 2, b"q", pairs, compute, 1).hits == 2


def test_a_record_of_another_posting_is_as_good_as_none(redis_url):
    store = FeatureStore(RedisLink(connect(RedisSettings(url=redis_url)), time.monotonic), "t", 60_000)
    update = IndexUpdate(posting_id="a", version=1, op=IndexOp.UPSERT, attributes=Attributes(title="x"), produced_at=0)
    store.write(Batch(updates=[update], before={}, after={}))
    redis.Redis.from_url(redis_url).copy("t:features:a", "t:features:b")
    assert store.read(["a", "b"]) == [update, None]


# --- a server that does not answer, or not in Redis's words --------------------------------------------------------


class Server:
    """Listens, greets clients as Redis does, and says `says` to whatever else they ask; nothing when it is empty."""

    def __init__(self, says=b""):
        self.says = says
        self.asked = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0?protocol=2"
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        with connection:
            while True:
                try:
                    asked = connection.recv(1 << 16)
                except OSError:
                    return
                if not asked:
                    return
                if b"MGET" not in asked:
                    connection.sendall(b"+OK\r\n" * max(1, asked.count(b"SETINFO")))
                    continue
                self.asked += 1
                if self.says:
                    connection.sendall(self.says)

    def close(self):
        self._listener.close()


@pytest.fixture
def server():
    made = Server()
    yield made
    made.close()


@pytest.mark.parametrize("client", [{}, {"retry_on_timeout": True}, {"retry_on_error": [redis.TimeoutError]}])
def test_a_redis_that_does_not_answer_is_asked_once_whatever_the_client_would_do(server, client):
    link = RedisLink(connect(RedisSettings(url=server.url, client=client)), time.monotonic)
    with pytest.raises(RedisAway, match="TimeoutError"):
        link.run(lambda client: read_values(client, ["a", "b"]))
    assert server.asked == 1


@pytest.mark.parametrize(
    "says",
    [b"*x\r\n", b"*2\r\n$zz\r\n", b"garbage\r\n", b":12\r\n", b"*0\r\n", b"*-1\r\n", b"+OK\r\n", b"*2\r\n:1\r\n+x\r\n"],
)
def test_what_is_not_the_answer_to_the_question_is_as_good_as_none(server, says):
    server.says = says
    link = RedisLink(connect(RedisSettings(url=server.url)), time.monotonic)
    with pytest.raises(RedisAway):
        link.run(lambda client: read_values(client, ["a", "b"]))
    assert not link.up
    cache = ScoreCache(link, "t", 900, time.monotonic)
    pairs = [PairVersion("default", name, 1, 0) for name in "ab"]
    rows = np.array([[0.5, 1.0], [0.25, 2.0]])
    cached = cache.rows("m", 2, b"q", pairs, lambda at: Computed(rows[at], np.full(len(at), True)), 1)
    assert cached.rows.tolist() == rows.tolist()
    assert cached.degraded
