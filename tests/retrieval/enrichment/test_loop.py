"""The two loops over a log in memory: what they answer, what they commit, and when something breaks in between."""

import threading
import time
from contextlib import contextmanager

import pytest
from log_in_memory import Log, LogSink, LogSource

from penstock.retrieval.encoder.enriching import Made
from penstock.retrieval.enrichment.loop import EnrichLoop, Lane
from penstock.retrieval.enrichment.pace import TokenBucket
from penstock.schemas import topics
from penstock.schemas.events import DeadLetter, EnrichedPosting, Enrichment, EnrichRequest, PostingText, Vector
from penstock.schemas.wire import codec

NOW = 1_000_000


def request(name, version=1, **more):
    text = more.pop("text", PostingText(title=f"{name} {version}", description="d"))
    return EnrichRequest(posting_id=name, version=version, text_hash=text.title, text=text, **more)


class Models:
    """Makes vectors named after titles; remembers what it was asked. "poison" cannot be encoded, "" has no words."""

    def __init__(self):
        self.batches = []
        self.broken = 0

    def __call__(self, postings):
        self.batches.append([posting.title for posting in postings])
        if self.broken:
            self.broken -= 1
            raise RuntimeError("out of order")
        return [self._made(posting.title) for posting in postings]

    def _made(self, title):
        if title == "poison":
            return Made(Enrichment(summary="s"), ValueError("cannot be encoded"))
        if title == "":
            return Made(Enrichment(summary="s"))
        return Made(Enrichment(vector=Vector(space_id="s", encoder_id=title, dense=b"\0\0"), summary="s"))


class World:
    def __init__(self, *, heals=False, batch=4, rate=0.0, partitions=1, fail=lambda topic, value: None):
        self.log, self.sink, self.models = Log(partitions), LogSink(fail), Models()
        self.now_s = 0.0
        self.sources = []
        self.loop = EnrichLoop(
            Lane("test", heals, self.models, batch, TokenBucket(rate, batch, 0.0)),
            self.open,
            self.sink,
            codec(EnrichRequest),
            codec(EnrichedPosting),
            lambda: NOW,
            lambda: self.now_s,
        )

    def open(self, rebalance):
        self.sources.append(LogSource(self.log, rebalance))
        return self.sources[-1]

    def publish(self, *requests, partition=0):
        for each in requests:
            raw = codec(EnrichRequest).encode(each)
            self.log.append(raw, partition, topics.ENRICH.key(each).encode())

    def source(self):
        """As the loop would open it, for single steps."""
        return self.open(self.loop._rebalance)

    def answers(self):
        return [codec(EnrichedPosting).decode(value) for _, value in self.sink.sent[topics.ENRICHED.name]]

    def letters(self):
        return [codec(DeadLetter).decode(value) for _, value in self.sink.sent[topics.ENRICH.dead_letters]]

    @contextmanager
    def running(self):
        stop = threading.Event()
        thread = threading.Thread(target=self.loop.run, args=(stop,))
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join(20)
        assert not thread.is_alive()

    def until(self, condition):
        give_up = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < give_up
            threading.Event().wait(0.005)


def test_requests_are_answered_in_batches_under_their_key_and_committed():
    world = World(batch=3)
    world.publish(*(request(f"p{n}", n + 1, tenant="t", trace="00-trace") for n in range(5)))
    with world.running():
        world.until(lambda: world.log.committed == {0: 5})
    assert [len(batch) for batch in world.models.batches] == [3, 2]
    assert [(a.posting_id, a.version) for a in world.answers()] == [(f"p{n}", n + 1) for n in range(5)]
    first = world.answers()[0]
    assert (first.tenant, first.text_hash, first.trace, first.heals) == ("t", "p0 1", "00-trace", False)
    assert first.enrichment.vector.encoder_id == "p0 1"
    assert [key for key, _ in world.sink.sent[topics.ENRICHED.name]] == [f"p{n}".encode() for n in range(5)]
    assert world.loop.tally.answered == 5
    assert world.loop.not_at_work() == ""


def test_the_loop_that_heals_takes_only_what_has_no_vector_and_says_so():
    world = World(heals=True)
    world.log.append(b"poison")
    world.publish(request("has"), request("bare", bare=True), request("late", bare=True, expires_at=NOW))
    with world.running():
        world.until(lambda: world.log.committed == {0: 4})
    assert [(a.posting_id, a.heals) for a in world.answers()] == [("bare", True)]
    assert world.letters() == [], "the other loop says what is wrong with a request"
    assert world.loop.tally.skipped == 1


def test_poison_is_dead_lettered_with_its_bytes_and_delays_nobody():
    world = World(batch=8)
    world.log.append(b"\x00 not a request", key=b"k", timestamp_ms=7)
    world.log.append(None, key=b"tombstone")
    world.publish(
        request("bad", text=PostingText(title="poison", description="d")),
        request("wordless", text=PostingText(title="", description="")),
        request("good"),
    )
    with world.running():
        world.until(lambda: world.log.committed == {0: 5})
    assert [a.posting_id for a in world.answers()] == ["good"]
    assert [(x.raw[:5], x.stage) for x in world.letters()[:2]] == [(b"\x00 not", "decode"), (b"", "decode")]
    bad = world.letters()[2]
    assert (bad.stage, bad.error_class, bad.key) == ("encode", "ValueError", b"bad")
    assert codec(EnrichRequest).decode(bad.raw).posting_id == "bad"
    assert (world.loop.tally.refused, world.loop.tally.skipped) == (3, 1)


def test_expired_and_superseded_requests_cost_no_work():
    world = World(batch=8)
    world.publish(request("a", 1), request("a", 2), request("b", expires_at=NOW))
    with world.running():
        world.until(lambda: world.log.committed == {0: 3})
    assert world.models.batches == [["a 2"]]
    assert world.loop.tally.skipped == 2


def test_nothing_is_committed_before_every_answer_is_delivered():
    refusals = ["broker away"] * 2
    world = World(fail=lambda topic, value: refusals.pop() if refusals else None)
    world.publish(request("a"), request("b"))
    source = world.source()
    with pytest.raises(Exception, match="broker away"):
        world.loop.step(source)
    assert world.log.committed == {}
    with world.running():
        world.until(lambda: world.log.committed == {0: 2})
    assert [a.posting_id for a in world.answers()] == ["a", "b"]


def test_a_crash_between_answer_and_commit_answers_again_and_loses_nothing():
    world = World()
    world.publish(request("a"), request("b"))
    source = world.source()
    source.commit = lambda positions, wait=False: (_ for _ in ()).throw(SystemExit())  # killed right there
    with pytest.raises(SystemExit):
        world.loop.step(source)
    with world.running():
        world.until(lambda: world.log.committed == {0: 2})
    assert [a.posting_id for a in world.answers()] == ["a", "b", "a", "b"]


def test_a_batch_that_fails_is_done_again_and_the_trouble_is_said(monkeypatch):
    monkeypatch.setattr("penstock.retrieval.enrichment.loop.REOPEN_AFTER_S", 0.01)
    world = World()
    world.models.broken = 2
    world.publish(request("a"))
    troubles = set()
    with world.running():
        world.until(lambda: troubles.add(world.loop.not_at_work()) or world.log.committed == {0: 1})
        world.until(lambda: world.loop.not_at_work() == "")
    assert any("out of order" in trouble for trouble in troubles)
    assert len(world.models.batches) == 3
    assert all(source.closed for source in world.sources)


def test_a_dead_letter_the_broker_refuses_says_where_the_bytes_are():
    too_large = lambda topic, value: "too large" if topic.endswith("dlq") and b"huge" * 100 in value else None  # noqa: E731
    world = World(fail=too_large)
    world.log.append(b"huge" * 1_000)
    with world.running():
        world.until(lambda: world.log.committed == {0: 1})
    [letter] = world.letters()
    assert letter.raw == b""
    assert "partition 0, offset 0" in letter.message


def test_the_rate_is_kept_while_the_group_is_polled():
    world = World(batch=2, rate=1.0)
    world.publish(*(request(f"p{n}") for n in range(6)))
    source = world.source()
    done = []
    for second in range(4):
        world.now_s = float(second)
        for _ in range(5):  # the bucket is empty after the first
            world.loop.step(source)
        done.append(len(world.answers()))
    assert done == [2, 3, 4, 5]
    assert source.paused
    world.loop.step(source)
    assert len(world.answers()) == 5


def test_what_was_polled_of_a_partition_that_is_lost_is_left_to_its_new_owner():
    world = World(partitions=2)
    world.publish(request("mine"), partition=0)
    world.publish(request("theirs"), partition=1)
    source = world.source()
    poll = source.poll

    def losing(limit, timeout_s):
        records = poll(limit, timeout_s)
        source.callbacks.revoked([1])
        return records

    source.poll = losing
    world.loop.step(source)
    assert [a.posting_id for a in world.answers()] == ["mine"]
    assert world.log.committed == {0: 1}


def test_what_comes_of_a_partition_that_was_lost_and_given_back_within_one_poll_is_answered():
    world = World()
    world.publish(request("before"))
    source = world.source()
    world.loop.step(source)
    world.publish(request("after"))
    source.rebalance_soon = True
    world.loop.step(source)
    assert [a.posting_id for a in world.answers()] == ["before", "after"]
    assert world.log.committed == {0: 2}


def test_lag_counts_what_has_not_been_read():
    world = World(batch=2)
    world.publish(*(request(f"p{n}") for n in range(5)))
    source = world.source()
    world.loop.step(source)
    world.now_s = 5.0
    world.loop.step(source)
    assert world.loop.tally.lag == 3


def test_a_loop_that_stands_still_is_seen():
    world = World()
    world.loop.tally.trouble = ""
    world.now_s = 121.0
    assert "has not moved for 121 s" in world.loop.not_at_work()
