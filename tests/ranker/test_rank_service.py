"""The desk and its Kafka feed: everything that came in is answered, committed only once delivered."""

import threading
import time
from collections import Counter

import pytest
from desk import make_desk
from hypothesis import given
from hypothesis import strategies as st
from log_in_memory import Log, LogSink, LogSource
from registry_server import RegistryServer

from penstock.ranker import policy
from penstock.ranker.errors import CallerLeft, DeadlinePassed, QueueClosed, QueueFull
from penstock.ranker.offsets import OffsetTracker
from penstock.ranker.request_feed import RequestFeed
from penstock.ranker.service import Job, error_result
from penstock.schemas import topics, validate
from penstock.schemas.events import DeadLetter, Page, RankQuery, RankRequest, RankResult
from penstock.schemas.framing import topic_codec
from penstock.schemas.wire import codec

NOW = 1_000_000
LATER = NOW + 60_000
LIMITS = policy.DepthLimits(250, 2_000)


def request(name="r", deadline=LATER, **changes):
    return RankRequest(request_id=name, tenant="t", deadline=deadline, query=RankQuery(text=f"nurse {name}"), **changes)


def result(job, turn=None):
    return RankResult(request_id=job.request.request_id, tenant=job.request.tenant, timings={})


@pytest.fixture
def desk():
    """Makes a started service and closes it in the end."""
    opened = []

    def make(rank=result, capacity=64, workers=2):
        service = make_desk(rank, workers=workers, places=capacity, now_ms=lambda: NOW)
        opened.append(service)
        service.start()
        return service

    yield make
    for service in opened:
        service.close(20)


class Gate:
    """A rank function that waits until it is opened."""

    def __init__(self):
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.order = []

    def __call__(self, job, turn):
        self.order.append(job.request.request_id)
        self.entered.release()
        assert self.open.wait(20)
        return result(job)


def test_answers_come_and_are_counted(desk):
    service = desk()
    jobs = [Job(request(str(number)), LATER) for number in range(20)]
    for job in jobs:
        service.submit(job)
    assert [job.future.result(20).request_id for job in jobs] == [str(number) for number in range(20)]
    assert service.counts() == {"served": 20, "failed": 0, "expired": 0, "refused": 0, "left": 0}


def test_closing_waits_no_longer_than_it_is_told(desk):
    gate = Gate()
    service = desk(gate, workers=16)
    for number in range(16):
        service.submit(Job(request(str(number)), LATER))
        assert gate.entered.acquire(timeout=20)
    began = time.monotonic()
    service.close(0.5)
    assert time.monotonic() - began < 4  # once, not once a worker: that would be 8 s
    gate.open.set()


def test_an_expired_request_costs_no_work_and_says_why(desk):
    def never(job, turn):
        raise AssertionError("worked on an expired request")

    service, job = desk(never), Job(request(deadline=NOW - 5), NOW - 5)
    service.submit(job)
    with pytest.raises(DeadlinePassed, match="deadline passed before ranking began: 5 ms late"):
        job.future.result(20)
    assert service.counts()["expired"] == 1


def test_a_caller_that_left_is_dropped_before_work(desk):
    gate = Gate()
    service = desk(gate, workers=1)
    busy, gone, last = (Job(request(name), LATER) for name in ("busy", "gone", "last"))
    service.submit(busy)
    assert gate.entered.acquire(timeout=20)
    service.submit(gone)
    service.submit(last)
    service.leave(gone)
    with pytest.raises(CallerLeft):
        gone.future.result(20)
    gate.open.set()
    last.future.result(20)
    service.leave(last)
    assert gate.order == ["busy", "last"]
    assert service.counts()["left"] == 1
    assert service.depth == 0


def test_a_full_queue_refuses_with_numbers_and_a_closed_one_too(desk):
    gate = Gate()
    service = desk(gate, capacity=1, workers=1)
    service.submit(Job(request("busy"), LATER))
    assert gate.entered.acquire(timeout=20)
    for name in ("waits", "waits too"):
        service.submit(Job(request(name), LATER))
    with pytest.raises(QueueFull, match=r"not let in \(queue\): the ranker is full; ask again in 1\.00 s") as told:
        service.submit(Job(request("refused"), LATER))
    assert (told.value.retry_after_s, told.value.why, told.value.tenant) == (1.0, "queue", False)
    assert service.try_submit(Job(request("of a feed"), LATER)) is None  # it holds no thread of the listener
    gate.open.set()
    service.close(20)
    with pytest.raises(QueueClosed):
        service.submit(Job(request("late"), LATER))
    assert service.counts()["refused"] == 2


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError("none left"), ZeroDivisionError()])
def test_a_request_that_breaks_is_answered_and_the_worker_lives_on(desk, error):
    def rank(job, turn):
        if job.request.request_id == "bad":
            raise error
        return result(job)

    service = desk(rank, workers=1)
    bad, good = Job(request("bad"), LATER), Job(request("good"), LATER)
    service.submit(bad)
    service.submit(good)
    assert good.future.result(20).request_id == "good"
    told = error_result(bad.request, bad.future.exception(20))
    assert told.error == f"RankFailed: rank: {type(error).__name__}: {error}"
    assert service.counts()["failed"] == 1


def test_an_error_gives_the_echo_back_unless_that_is_what_is_wrong():
    error = ValueError("odd")
    assert error_result(request(echo=b""), error).echo == b""
    most = b"x" * validate.MAX_ECHO_BYTES
    assert error_result(request(echo=most), error).echo == most
    assert error_result(request(echo=most + b"x"), error).echo is None


# --- offsets -------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=40), st.randoms())
def test_only_what_has_finished_with_all_before_it_is_committed(started, random):
    tracker, offsets, done, committed = OffsetTracker(), Counter(), set(), {}
    pending = []
    for partition, gap in started:  # compacted topics have gaps
        offset = offsets[partition] + (3 if gap else 0)
        offsets[partition] = offset + 1
        tracker.start(partition, offset)
        pending.append((partition, offset))
    everything = list(pending)
    random.shuffle(pending)
    for entry in pending:
        assert len(tracker) == len(everything) - len(done)
        tracker.finish(*entry)
        done.add(entry)
        committed.update(tracker.committable())
        for partition in range(3):
            mine = [offset for p, offset in everything if p == partition]
            ready = 0
            for offset in mine:
                if (partition, offset) not in done:
                    break
                ready = offset + 1
            assert committed.get(partition, 0) == ready
    assert tracker.committable() == {}


def test_a_forgotten_partition_is_not_committed():
    tracker = OffsetTracker()
    tracker.start(0, 7)
    tracker.forget([0])
    tracker.finish(0, 7)
    assert tracker.committable() == {}


# --- the feed ------------------------------------------------------------------------------------------------------


class Running:
    """A request feed on a thread over a log."""

    def __init__(self, service, log, sink, limit=8, registry=None):
        self.log, self.sink = log, sink
        self.stop, self._opened = threading.Event(), threading.Event()
        self.feed = RequestFeed(
            service,
            lambda asked: policy.check_request(asked, LIMITS),
            self._open,
            sink,
            limit,
            topic_codec(topics.RANK_REQUESTS, registry or {}),
            topic_codec(topics.RANK_RESULTS, registry or {}),
            now_ms=lambda: NOW,
        )
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

    def results(self):
        return [codec(RankResult).decode(value) for _, value in self.sink.sent[topics.RANK_RESULTS.name]]


def ask(log, *requests, partition=0):
    for one in requests:
        log.append(codec(RankRequest).encode(one), partition, key=b"t/" + one.request_id.encode(), timestamp_ms=NOW)


def test_requests_are_answered_under_their_key_and_committed_once_delivered(desk, until):
    log, names = Log(partitions=2), {str(number) for number in range(40)}
    for name in sorted(names):
        ask(log, request(name), partition=int(name) % 2)
    with Running(desk(), log, LogSink()) as running:
        until(lambda: log.committed == {0: 20, 1: 20})
    assert {one.request_id for one in running.results()} == names
    assert len(running.results()) == 40
    assert {key for key, _ in running.sink.sent[topics.RANK_RESULTS.name]} == {f"t/{name}".encode() for name in names}


def test_poison_is_dead_lettered_untouched_and_delays_nobody(desk, until):
    log = Log()
    log.append(b"poison", key=b"k", timestamp_ms=123)
    log.append(None)
    ask(log, request("bad", page=Page(size=0)), request("good"))
    with Running(desk(), log, LogSink()) as running:
        until(lambda: log.committed == {0: 4})
    letters = [codec(DeadLetter).decode(value) for _, value in running.sink.sent["rank.request.v1.dlq"]]
    assert [(one.raw, one.stage, one.error_class) for one in letters[:2]] == [
        (b"poison", "rank", "MalformedRecord"),
        (b"", "rank", "MalformedRecord"),
    ]
    assert (letters[0].key, letters[0].produced_at, letters[0].failed_at) == (b"k", 123, NOW)
    assert "page.size" in letters[2].message
    by_id = {one.request_id: one for one in running.results()}
    assert by_id["good"].error is None
    assert "page.size: got 0, expected 1 to 1000" in by_id["bad"].error


def test_expired_requests_are_answered_not_dropped(desk, until):
    log = Log()
    ask(log, request("late", deadline=NOW - 1, echo=b"go on"))
    with Running(desk(), log, LogSink()) as running:
        until(lambda: log.committed == {0: 1})
    assert "deadline passed before" in running.results()[0].error
    assert running.results()[0].echo == b"go on"


def test_a_full_queue_pauses_the_topic_and_drops_nothing(desk, until):
    gate, log = Gate(), Log()
    service = desk(gate, capacity=2, workers=1)
    ask(log, *(request(str(number), deadline=LATER + number) for number in range(50)))
    with Running(service, log, LogSink()) as running:
        until(lambda: running.source.paused and service.depth == 7)  # of 8 read, one is ranked
        assert running.source.next[0] < 50
        assert log.committed == {}
        gate.open.set()
        until(lambda: log.committed == {0: 50})
    assert Counter(one.request_id for one in running.results()) == Counter(str(number) for number in range(50))
    assert all(one.error is None for one in running.results())
    assert service.counts()["refused"] == 0  # trying again is no refusal


def test_nothing_is_committed_before_its_answer_is_delivered(desk, until):
    down, log = threading.Event(), Log()
    down.set()
    sink = LogSink(fail=lambda topic, value: "broker away" if down.is_set() else None)
    ask(log, request("a"))
    service = desk()
    with Running(service, log, sink) as running:
        until(lambda: service.counts()["served"] == 1 and running.feed._unsent)
        assert log.committed == {}
        down.clear()
        until(lambda: log.committed == {0: 1})
    assert [one.request_id for one in running.results()] == ["a"]


def test_an_answer_too_large_to_deliver_becomes_one_that_says_so(desk, until):
    def large(job, turn):
        echo = job.request.echo
        return RankResult(request_id=job.request.request_id, degraded=("x" * (2 << 20),), timings={}, echo=echo)

    log = Log()
    ask(log, request("a", echo=b"go on"))
    with Running(desk(large), log, LogSink()) as running:
        until(lambda: log.committed == {0: 1})
    assert "smaller page" in running.results()[0].error
    assert running.results()[0].echo == b"go on"


def test_a_dead_letter_the_broker_refuses_says_where_the_bytes_are(desk, until):
    sink = LogSink(fail=lambda topic, value: "too large" if len(value) > 1_000 else None)
    log = Log()
    log.append(b"x" * 2_000)
    with Running(desk(), log, sink):
        until(lambda: log.committed == {0: 1})
    [letter] = [codec(DeadLetter).decode(value) for _, value in sink.sent["rank.request.v1.dlq"]]
    assert "2000 bytes do not fit here; they are at partition 0, offset 0" in letter.message


def test_a_stop_answers_what_was_taken_in(desk, until):
    gate, log, service = Gate(), Log(), None
    service = desk(gate, workers=2)
    ask(log, request("a"), request("b"))
    running = Running(service, log, LogSink())
    running.thread.start()
    assert gate.entered.acquire(timeout=20) and gate.entered.acquire(timeout=20)
    running.stop.set()
    gate.open.set()
    running.thread.join(20)
    assert {one.request_id for one in running.results()} == {"a", "b"}
    assert log.committed == {0: 2}


def test_a_rebalance_answers_again_what_was_not_committed(desk, until):
    gate, log = Gate(), Log()
    service = desk(gate, workers=1)
    ask(log, request("a"))
    with Running(service, log, LogSink()) as running:
        assert gate.entered.acquire(timeout=20)
        running.source.rebalance_soon = True
        until(lambda: service.depth == 1)
        gate.open.set()
        until(lambda: log.committed == {0: 1})
        until(lambda: len(running.results()) == 2)
    assert {one.request_id for one in running.results()} == {"a"}


def test_behind_a_registry_requests_and_results_have_its_framing_and_dead_letters_do_not(desk, until):
    log = Log()
    with RegistryServer() as registry:
        jobs = topic_codec(topics.RANK_REQUESTS, registry.config)
        log.append(jobs.encode(request("a")))
        log.append(b"\x00\x00\x0f\x00\x00" + b"nobody registered this")
        with Running(desk(), log, LogSink(), registry=registry.reader) as running:
            until(lambda: log.committed == {0: 2})
        [(_, answer)] = running.sink.sent[topics.RANK_RESULTS.name]
        assert answer[:1] == b"\x00"
        assert topic_codec(topics.RANK_RESULTS, registry.config).decode(answer).request_id == "a"
    [(_, letter)] = running.sink.sent[topics.RANK_REQUESTS.dead_letters]
    assert codec(DeadLetter).decode(letter).error_class == "UnknownSchema"


def test_a_registry_that_is_away_delays_requests_and_loses_none(desk, until):
    log, registry = Log(), RegistryServer()
    with registry:
        log.append(topic_codec(topics.RANK_REQUESTS, registry.config).encode(request("a")))
        ask(log, request("b"))
        registry.away = True
        with Running(desk(), log, LogSink(), registry=registry.reader) as running:
            until(lambda: registry.refused >= 1)
            assert not log.committed
            registry.away, registry.refuse_ids = False, True  # results can be written, requests not yet read
            until(lambda: registry.refused_ids >= 2)
            assert running.source.paused
            assert not log.committed and not running.sink.sent
            registry.refuse_ids = False
            until(lambda: log.committed == {0: 2})
    assert running.sink.sent.keys() == {topics.RANK_RESULTS.name}
    assert len(running.sink.sent[topics.RANK_RESULTS.name]) == 2


def test_a_source_that_breaks_is_opened_again(desk, until):
    log = Log()
    with Running(desk(), log, LogSink()) as running:
        until(lambda: getattr(running, "source", None) is not None and running.source.next is not None)
        first, first.poll = running.source, _broken
        ask(log, request("a"))
        until(lambda: log.committed == {0: 1})
        assert running.source is not first
    assert {one.request_id for one in running.results()} == {"a"}


def _broken(limit, timeout_s):
    raise RuntimeError("the broker said something fatal")
