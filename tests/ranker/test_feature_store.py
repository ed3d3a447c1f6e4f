"""The feature store on a real Redis, and the feed that fills it from a log."""

import signal
import threading
import time
from dataclasses import replace

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from log_in_memory import Log, LogSource
from registry_server import RegistryServer

from penstock.infra.settings import RedisSettings
from penstock.infra.telemetry import DEGRADED
from penstock.ranker.errors import RedisAway
from penstock.ranker.feature_feed import FeatureFeed
from penstock.ranker.feature_store import Batch, FeatureStore, PositionsMoved, _stamp
from penstock.ranker.redis_link import RedisLink, connect
from penstock.schemas import topics
from penstock.schemas.events import Attributes, IndexOp, IndexUpdate, Vector
from penstock.schemas.framing import topic_codec
from penstock.schemas.wire import codec

WINDOW_MS = 60_000


def store_on(url, prefix="t"):
    return FeatureStore(RedisLink(connect(RedisSettings(url=url)), time.monotonic), prefix, WINDOW_MS)


def update(posting_id="p", version=1, revision=0, op=IndexOp.UPSERT, title="Nurse"):
    attributes = Attributes(title=title) if op is IndexOp.UPSERT else None
    return IndexUpdate(
        posting_id=posting_id, version=version, revision=revision, op=op, attributes=attributes, produced_at=1
    )


def write(store, *updates):
    store.write(Batch(updates=updates, before={}, after={}))


def test_records_come_back_in_order_without_their_vectors(redis_url):
    store = store_on(redis_url)
    vector = Vector(space_id="s", encoder_id="e", dense=b"\0\0")
    write(store, replace(update("a"), vector=vector), update("b"))
    assert store.read(["b", "x", "a"]) == [update("b"), None, update("a")]
    assert store.read([]) == []


stamps = st.tuples(
    st.sampled_from(["a", "b"]),
    st.sampled_from([0, 1, 2, 9, 10, 2**53, 2**53 + 1, 2**63 - 1]),
    st.sampled_from([-1, 0, 1, 9, 10, 1000]),
)


@given(st.lists(stamps, min_size=1, max_size=12), st.integers(1, 5))
def test_any_order_and_repetition_ends_in_the_newest(_shared_redis, arrivals, size):
    store = store_on(_shared_redis.url)
    with redis.Redis.from_url(_shared_redis.url) as client:
        client.flushall()

    def made(posting_id, version, revision):
        gone = (version + revision) % 3 == 0
        return update(posting_id, version, revision, IndexOp.DELETE if gone else IndexOp.UPSERT)

    for start in range(0, len(arrivals), size):
        write(store, *(made(*arrival) for arrival in arrivals[start : start + size]))
    for posting_id in ("a", "b"):
        mine = [arrival for arrival in arrivals if arrival[0] == posting_id]
        assert store.read([posting_id]) == [made(*max(mine)) if mine else None]


def test_a_stamp_is_digits_in_the_order_of_version_and_revision():
    order = [(6, 1000), (7, -1), (7, 0), (7, 1000), (8, -1), (2**63 - 1, -1), (2**63 - 1, 2**31 - 1)]
    stamps = [_stamp(update(version=version, revision=revision)) for version, revision in order]
    assert stamps == sorted(stamps) and len(set(stamps)) == len(stamps)
    assert all(len(stamp) == 30 and stamp.isdigit() for stamp in stamps)


def test_a_vector_follows_the_update_that_came_without_one_and_not_the_other_way(redis_url):
    store = store_on(redis_url)
    for version, revision in [(1, -1), (1, 0), (1, -1), (1, 1000), (1, 0), (2, -1), (1, 1000)]:
        write(store, update(version=version, revision=revision))
    assert store.read(["p"]) == [update(version=2, revision=-1)]


def test_a_deleted_posting_keeps_its_version_for_a_window_and_a_live_one_stays(redis_url):
    store, client = store_on(redis_url), redis.Redis.from_url(redis_url)
    write(store, update("p", 2), update("p", 3, op=IndexOp.EXPIRE), update("p", 2), update("q", 1))
    assert store.read(["p"])[0].op is IndexOp.EXPIRE
    assert 0 < client.pttl("t:features:p") <= WINDOW_MS
    assert client.pttl("t:features:q") == -1
    write(store, update("p", 4))
    assert client.pttl("t:features:p") == -1


def test_positions_are_written_with_the_records_or_not_at_all(redis_url):
    store = store_on(redis_url)
    store.write(Batch(updates=[update("a")], before={"c/t/0": None}, after={"c/t/0": 5}))
    with pytest.raises(PositionsMoved, match="stands at 5, this writer left it at 4"):
        store.write(Batch(updates=[update("b")], before={"c/t/0": 4}, after={"c/t/0": 9}))
    assert store.positions() == {"c/t/0": 5}
    assert store.read(["b"]) == [None]


def test_a_record_that_nobody_can_read_is_as_good_as_none(redis_url):
    redis.Redis.from_url(redis_url).set("t:features:p", b"0" * 30 + b"garbage")
    store = store_on(redis_url)
    assert store.read(["p"]) == [None]
    write(store, update("p", 1))
    assert store.read(["p"]) == [update("p", 1)]


def test_reading_without_redis_says_so(redis_server):
    store = store_on(redis_server.url)
    redis_server.stop()
    with pytest.raises(RedisAway):
        store.read(["p"])


# --- the feed ------------------------------------------------------------------------------------------------------


class Running:
    """A feed on a thread over a log; `source` is the one it opened last."""

    def __init__(self, store, log, registry=None, ingest=None):
        self.log = log
        self.stop, self._opened = threading.Event(), threading.Event()
        updates = topic_codec(topics.INDEX, registry or {})
        self.feed = FeatureFeed(store, self._open, updates, now_ms=lambda: 5_000, clock=time.monotonic, ingest=ingest)
        self.thread = threading.Thread(target=self.feed.run, args=(self.stop,))

    def _open(self, rebalance):
        self._source = LogSource(self.log, rebalance)
        self._opened.set()
        return self._source

    @property
    def source(self):
        assert self._opened.wait(20)
        return self._source

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


def publish(log, *updates, partition=0):
    for one in updates:
        log.append(codec(IndexUpdate).encode(one), partition, timestamp_ms=1_000)


def test_the_feed_writes_what_comes_and_skips_what_it_cannot_read(redis_url, until):
    store, log = store_on(redis_url), Log(partitions=2)
    publish(log, update("a"))
    log.append(b"poison")
    log.append(None)
    publish(log, update("b"), partition=1)
    with Running(store, log) as running:
        until(lambda: store.read(["a", "b"]) == [update("a"), update("b")])
        until(lambda: running.log.committed == {0: 3, 1: 1})
        until(lambda: running.feed.progress.state == "reading" and running.feed.progress.lag_offsets == 0)
        assert running.feed.progress.written == 2
        publish(log, update("a", 2))
        until(lambda: store.read(["a"]) == [update("a", 2)])
    assert running.source.closed


def test_what_was_written_is_made_ready_for_the_language_model_whose_trouble_stops_nothing(redis_url, until):
    store, log, ingested = store_on(redis_url), Log(), []

    def ingest(updates):
        assert store.read([one.posting_id for one in updates]) == list(updates)
        ingested.extend(one.posting_id for one in updates)
        if "a" in ingested[-len(updates) :]:
            raise RuntimeError("the tokenizer failed")

    counted = DEGRADED.labels("ranker", "features: not made ready for the language model")
    before = counted._value.get()
    with Running(store, log, ingest=ingest) as running:
        publish(log, update("a"))
        until(lambda: ingested == ["a"])
        publish(log, update("b"))
        until(lambda: ingested == ["a", "b"] and running.log.committed == {0: 2})
    assert counted._value.get() == before + 1


def test_a_restart_goes_on_where_redis_stands_whatever_kafka_has_committed(redis_url, until):
    store, log = store_on(redis_url), Log()
    publish(log, update("a"), update("b"))
    with Running(store, log):
        until(lambda: store.positions() == {"cluster/topic/0": 2})
    log.committed[0] = 99
    publish(log, update("c"))
    with Running(store, log) as running:
        until(lambda: store.read(["c"]) == [update("c")])
        assert running.feed.progress.written <= 1


def test_a_flushed_redis_is_rebuilt_at_the_next_update_and_on_a_quiet_topic(redis_url, until):
    store, log, client = store_on(redis_url), Log(), redis.Redis.from_url(redis_url)
    publish(log, *(update(f"p{number}") for number in range(20)))
    with Running(store, log):
        until(lambda: store.read(["p19"])[0])
        client.flushall()
        publish(log, update("new"))
        until(lambda: None not in store.read(["new", *(f"p{number}" for number in range(20))]))
        client.flushall()
        until(lambda: None not in store.read(["new", *(f"p{number}" for number in range(20))]))


def test_an_outage_of_redis_loses_nothing(redis_server, until):
    store, log = store_on(redis_server.url), Log()
    publish(log, update("before"))
    with Running(store, log) as running:
        until(lambda: store.read(["before"])[0])
        redis_server.stop()
        publish(log, update("during"))
        until(lambda: "waiting for Redis" in running.feed.progress.state)
        assert running.feed.progress.lag_offsets == 1
        assert running.feed.progress.lag_seconds == 4.0
        redis_server.start()
        until(lambda: not _away(store) and None not in store.read(["before", "during"]))


def test_a_redis_that_hangs_and_comes_back_goes_on_without_a_rewind(redis_server, until):
    store, log = store_on(redis_server.url), Log()
    publish(log, update("before"))
    with Running(store, log) as running:
        until(lambda: store.read(["before"])[0])
        redis_server._process.send_signal(signal.SIGSTOP)
        publish(log, update("during"))
        until(lambda: "waiting for Redis" in running.feed.progress.state)
        redis_server._process.send_signal(signal.SIGCONT)
        until(lambda: not _away(store) and store.read(["during"])[0])


def test_a_rebalance_in_the_middle_loses_nothing(redis_url, until):
    store, log = store_on(redis_url), Log(partitions=3)
    with Running(store, log) as running:
        for number in range(60):
            publish(log, update(f"p{number}"), partition=number % 3)
            if number % 20 == 10:
                until(lambda: running.source.next is not None)
                running.source.rebalance_soon = True
        until(lambda: None not in store.read([f"p{number}" for number in range(60)]))


def test_a_source_that_breaks_is_opened_again(redis_url, until):
    store, log = store_on(redis_url), Log()
    with Running(store, log) as running:
        until(lambda: running.feed.progress.state == "reading")
        first, first.poll = running.source, _broken
        publish(log, update("after"))
        until(lambda: running.source is not first)
        until(lambda: store.read(["after"])[0])
        assert first.closed


def test_a_topic_made_anew_is_read_from_its_beginning_however_far_it_has_grown(redis_url, until):
    store, log = store_on(redis_url), Log()
    publish(log, update("old"))
    with Running(store, log) as running:
        until(lambda: store.read(["old"])[0])
        anew = Log()
        publish(anew, *(update(f"p{number}") for number in range(5)))
        with log.changed:  # the consumer stands at 1 and does not notice by itself
            log.name, log.partitions = "cluster/topic made anew", anew.partitions
        until(lambda: None not in store.read([f"p{number}" for number in range(5)]))
        until(lambda: running.feed.progress.lag_offsets == 0)
    assert store.positions()["cluster/topic made anew/0"] == 5


def test_updates_framed_for_a_registry_reach_the_store_and_wait_while_it_is_away(redis_url, until):
    store, log = store_on(redis_url), Log()
    with RegistryServer() as registry:
        log.append(topic_codec(topics.INDEX, registry.config).encode(update("a")))
        registry.away = True
        with Running(store, log, registry.reader) as running:
            until(lambda: "waiting for the schema registry" in running.feed.progress.state)
            assert (store.positions(), log.committed, running.source.closed) == ({}, {}, False)
            registry.away = False
            until(lambda: store.read(["a"]) == [update("a")])
            log.append(b"\x00\x00\x0f\x00\x00" + b"nobody registered this")
            publish(log, update("b"))
            until(lambda: store.read(["b"]) == [update("b")])
            until(lambda: running.feed.progress.written == 2)  # told after the store has it


def _broken(limit, timeout_s):
    raise RuntimeError("the broker said something fatal")


def _away(store):
    try:
        store.read(["x"])
    except RedisAway:
        return True
    return False
