"""The ranker's door to Kafka: everything read is answered, committed once delivered, and waits where it is refused."""

import threading
from collections import Counter

import pytest
from desk import make_desk
from log_in_memory import Log, LogSink
from refusing import Refusing
from registry_server import RegistryServer
from running_feed import NOW, Running, ask

from penstock.ranker import backlog
from penstock.ranker.request_feed import PAUSED
from penstock.ranker.shaping.work import Why
from penstock.schemas import topics
from penstock.schemas.events import DeadLetter, Page, RankClass, RankQuery, RankRequest, RankResult
from penstock.schemas.framing import topic_codec
from penstock.schemas.wire import codec

LATER = NOW + 60_000
HOUR = NOW + 3_600_000


def request(name="r", deadline=LATER, **changes):
    changes = {"tenant": "t", **changes}
    return RankRequest(request_id=name, deadline=deadline, query=RankQuery(text=f"nurse {name}"), **changes)


def result(job, turn=None):
    return RankResult(request_id=job.request.request_id, tenant=job.request.tenant, timings={})


@pytest.fixture
def desk():
    """Makes a started service, with a door that a test may shut, and closes it in the end."""
    opened = []

    def make(rank=result, workers=2):
        def around(shaper):
            doors.append(Refusing(shaper))
            return doors[0]

        doors = []
        service = make_desk(rank, workers=workers, places=64, now_ms=lambda: NOW, around=around)
        service.door = doors[0]
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


# --- what is refused -----------------------------------------------------------------------------------------------


def shut(service, *classes, after_s=0.01):
    """Refuses works of these classes (of all, where none is named) until `open`."""
    service.door.after_s = lambda work: after_s if not classes or work.class_ in classes else None


def opened(service):
    service.door.after_s = lambda work: None


def test_a_shut_door_pauses_the_topic_and_drops_nothing(desk, until):
    log, service = Log(), desk()
    shut(service)
    ask(log, *(request(str(number), deadline=LATER + number) for number in range(50)))
    with Running(service, log, LogSink(), people=8) as running:
        until(lambda: running.source.paused)
        assert running.source.next[0] == 8
        assert log.committed == {} and not running.results()
        opened(service)
        until(lambda: log.committed == {0: 50})
        until(lambda: not running.source.paused)
    assert Counter(one.request_id for one in running.results()) == Counter(str(number) for number in range(50))
    assert all(one.error is None for one in running.results())
    assert service.counts()["refused"] == 0  # trying again is no refusal


def test_what_is_offered_again_says_so_and_what_comes_does_not(desk, until):
    log, service, offered = Log(), desk(), []

    def thrice(work):
        offered.append(work.again)
        return 0.01 if len(offered) <= 3 else None

    service.door.after_s = thrice
    ask(log, request("first"))
    with Running(service, log, LogSink()):
        until(lambda: log.committed == {0: 1})
        ask(log, request("second"))
        until(lambda: log.committed == {0: 2})
    assert offered == [False, True, True, True, False]


def test_what_is_refused_is_not_offered_again_before_its_time(desk, until):
    log, service = Log(), desk()
    shut(service, after_s=600.0)
    with Running(service, log, LogSink()) as running:
        ask(log, request("first"))
        until(lambda: service.door.refusals == 1)
        ask(log, request("later", deadline=HOUR), request("other", tenant="u"))
        until(lambda: service.door.refusals == 2)  # the other tenant's: the one behind `first` has not been offered
        opened(service)
        ask(log, request("sooner", deadline=LATER - 1))
        until(lambda: running.results())
        assert service.door.refusals == 2
        assert [one.request_id for one in running.results()][:1] == ["sooner"]


def test_a_digest_that_is_refused_holds_up_neither_people_nor_instant_alerts_behind_it(desk, until, monkeypatch):
    monkeypatch.setattr(backlog, "LONGEST_WAIT_S", 0.05)
    log, service = Log(), desk()
    digests = [request(f"digest {n}", HOUR + n, class_=RankClass.ALERT) for n in range(40)]
    service.door.after_s = lambda work: 600.0 if work.deadline_s - work.arrived_s > 1_000 else None
    behind = [
        request("search"),
        request("instant", NOW + 30_000, class_=RankClass.ALERT),
        request("refresh", NOW + 5_000, class_=RankClass.RECOMMENDATION),
    ]
    ask(log, *digests, *behind)
    with Running(service, log, LogSink(), people=4) as running:
        until(lambda: len(running.results()) == 3)
        assert {one.request_id for one in running.results()} == {"search", "instant", "refresh"}
        assert not running.source.paused and log.committed == {}
        opened(service)
        until(lambda: log.committed == {0: 43})
    assert len(running.results()) == 43


def test_a_tenant_that_is_ahead_of_its_share_holds_up_itself_alone(desk, until):
    log, service = Log(), desk()
    service.door.why = Why.TENANT
    service.door.after_s = lambda work: 600.0 if work.tenant == "greedy" else None
    ask(log, *(request(f"g{n}", tenant="greedy", class_=RankClass.ALERT) for n in range(9)), request("a", tenant="b"))
    with Running(service, log, LogSink()) as running:
        until(lambda: running.results())
        assert [(one.tenant, one.request_id) for one in running.results()] == [("b", "a")]
        assert service.door.refusals == 1


def test_more_bytes_than_it_may_hold_pause_the_topic_until_some_are_answered(desk, until, monkeypatch):
    monkeypatch.setattr(backlog, "MOST_BYTES", 64_000)
    log, service = Log(), desk()
    shut(service)
    ask(log, *(request(str(n), class_=RankClass.ALERT, echo=bytes(1_000)) for n in range(100)))
    with Running(service, log, LogSink()) as running:
        until(lambda: running.source.paused)
        assert running.source.next[0] < 30
        opened(service)
        until(lambda: log.committed == {0: 100})
    assert len(running.results()) == 100


def test_a_search_that_waits_past_its_deadline_is_answered_with_that_and_an_alert_is_served_late(desk, until):
    log, service, clock = Log(), desk(), [NOW]
    shut(service)
    ask(log, request("search", NOW + 10, echo=b"go on"), request("alert", NOW + 10, class_=RankClass.ALERT))
    with Running(service, log, LogSink(), now_ms=lambda: clock[0]) as running:
        until(lambda: service.door.refusals >= 2)
        assert not running.results()
        clock[0] = NOW + 15
        until(lambda: running.results())
        [told] = running.results()
        assert (told.request_id, told.echo) == ("search", b"go on")
        assert told.error == "DeadlinePassed: deadline passed before there was room in the queue: 5 ms late" + (
            "; send a later deadline, or ask for less (depth, page.size)"
        )
        opened(service)
        until(lambda: log.committed == {0: 2})
    assert [(one.request_id, one.error) for one in running.results()[1:]] == [("alert", None)]
    assert service.counts()["expired"] == 1


def test_what_was_refused_of_a_partition_that_is_lost_is_left_to_who_has_it_next(desk, until):
    log, service = Log(partitions=2), desk()
    shut(service, RankClass.ALERT, after_s=600.0)
    ask(log, request("a", class_=RankClass.ALERT), partition=0)
    with Running(service, log, LogSink()) as running:
        until(lambda: service.door.refusals == 1)
        running.source.rebalance_soon = True
        until(lambda: service.door.refusals == 2)  # read again
        assert len(running.feed._backlog) == 1
        opened(service)
        running.source.rebalance_soon = True
        until(lambda: log.committed == {0: 1})
    assert [one.request_id for one in running.results()] == ["a"]


# --- answers -------------------------------------------------------------------------------------------------------


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


def test_a_feed_that_starts_again_while_paused_says_that_it_reads(desk, until):
    log, service = Log(), desk()
    shut(service)
    ask(log, *(request(str(number)) for number in range(9)))
    with Running(service, log, LogSink(), people=4) as running:
        until(lambda: running.source.paused and PAUSED._value.get() == 1)
        running.log = Log()  # with nothing to pause for
        running.source.poll = _broken
        until(lambda: PAUSED._value.get() == 0)


def _broken(limit, timeout_s):
    raise RuntimeError("the broker said something fatal")
